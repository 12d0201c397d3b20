"""What a device knows of its rounds of local steps: of the one that is on, and of one whose result is still to come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from edge_client.exchange import TensorKey
from edge_client.sync.model_tensors import copies


@dataclass
class Round:
    """What a device has done since its last contribution."""

    batches: int = 0
    samples: int = 0
    loss: float = 0.0
    """Summed over the samples."""

    @property
    def is_first(self) -> bool:
        """Whether no batch has counted yet."""
        return not self.samples

    @property
    def mean_loss(self) -> float:
        """Of the loss, over the samples."""
        return self.loss / self.samples if self.samples else math.nan


class Lengths:
    """How many batches the rounds have.

    Args:
        chosen: by the user; None if the session says it with the result of each round.
        overlap: whether a result comes when the round after it is over; what it says is then for the one after that.

    """

    def __init__(self, chosen: int | None, *, overlap: bool) -> None:
        self._chosen = chosen
        self._of = [chosen or 1] * (2 if overlap else 1)
        """From the round on whose result comes next."""

    def of_round(self, *, is_behind: bool) -> int:
        """Return that of the round that is on, which may be the one after that whose result comes next."""
        return self._of[-1 if is_behind else 0]

    def begin(self, batches: int | None) -> None:
        """Take note of what the session says of its first round."""
        if self._chosen is None:
            self._of = [batches or length for length in self._of]

    def end_round(self, next_batches: int | None) -> None:
        """Take note of what a result says."""
        if self._chosen is None:
            self._of = [*self._of[1:], next_batches or self._of[-1]]

    def state(self) -> list[int]:
        """Return what `load` needs."""
        return list(self._of)

    def load(self, state: Sequence[int]) -> None:
        """Go on from what `state` gave, perhaps without overlap."""
        if self._chosen is None:
            self._of = [*state, *state[-1:]][: max(len(self._of), len(state))]


class Told(dict[TensorKey, Tensor]):
    """What is to be contributed, by key; whoever contributes to an exchange can contribute to it."""

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Take one tensor."""
        self[key] = value


@dataclass
class SentRound:
    """A round that was sent, until its result is taken; the device may take the steps of the next one meanwhile."""

    batches: int
    samples: int
    loss: float
    """Mean over the samples."""
    hyperparameters: Mapping[str, float]
    told: Mapping[TensorKey, Tensor]
    """What was sent besides the moves."""
    parameters: Mapping[str, Tensor]
    """As they were when it was sent; none if the device waits for the result."""
    unsent: Mapping[str, Any] = field(default_factory=dict)
    """What the device had still to send before: with it the round is sent again by the same bytes."""
    moved: float = 0.0
    """Square of the norm of the move."""

    def agreement_with(self, means: Mapping[TensorKey, Tensor]) -> float:
        """Return how far the move was that of all."""
        together = sum(float(mean.square().sum()) for (kind, _), mean in means.items() if kind == "delta")
        return together / self.moved if self.moved > 0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return what `from_state` needs, but for `unsent`."""
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in vars(self).items() if name != "unsent"}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return what `state_dict` gave."""
        return cls(**{**state, "parameters": copies(state["parameters"])})
