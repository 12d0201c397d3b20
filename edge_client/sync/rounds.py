"""What a device knows of its rounds of local steps: of the one that is on, and of one whose result is still to come."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from edgenewton.v1.forms import Form
from torch import Tensor

from edge_client.exchange import FormedMembership, Membership, StepResult, TensorKey
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


class SessionChoice:
    """How many batches the rounds have, and in which form moves are written.

    Args:
        every: batches, if the user chose them; None if the session says both with the result of each round.
        overlap: whether a result comes when the round after it is over; the batches that it says are then for the one
            after that. The form is for the round that is sent next, in any case.

    """

    def __init__(self, every: int | None, *, overlap: bool) -> None:
        self._is_open = every is None
        self._batches = [every or 1] * (2 if overlap else 1)
        """From the round on whose result comes next."""
        self.form: Form | None = None
        """None until a session says so, and where it does not choose."""

    def batches(self, *, is_behind: bool) -> int:
        """Return those of the round that is on, which may be the one after that whose result comes next."""
        return self._batches[-1 if is_behind else 0]

    def begin(self, place: Membership) -> None:
        """Take note of what the session says of the first round, if it does."""
        if self._is_open:
            self._batches = [place.first_batches or batches for batches in self._batches]
            if isinstance(place, FormedMembership):
                self.form = place.first_form or self.form

    def take(self, result: StepResult) -> None:
        """Take note of what a result says."""
        if self._is_open:
            self._batches = [*self._batches[1:], result.next_batches or self._batches[-1]]
            self.form = result.next_form or self.form

    def tell_form(self, place: Membership) -> None:
        """Let moves be written in the form that is chosen."""
        if self.form is not None and isinstance(place, FormedMembership):
            place.write_as(self.form)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {"every": list(self._batches), "form": self.form and self.form.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, perhaps without overlap; a state of another plan has nothing of it."""
        if self._is_open:
            saved = state.get("every", 1)
            batches = [saved] if isinstance(saved, int) else saved
            self._batches = [*batches, *batches[-1:]][: max(len(self._batches), len(batches))]
            self.form = Form(state["form"]) if state.get("form") else None


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
