"""The exchange of one device with itself: every mean is its own contribution."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.linalg import is_finite
from edge_client.exchange.errors import NonFiniteGradientError
from edge_client.exchange.interface import Pace, Replica, Stages, StepResult, TensorKey, Traffic, no_stages


class InProcessExchange:
    """Lets one device train alone with the same optimizer and trainer, without a coordinator."""

    is_alone = True

    def __init__(self, device: str = "this device") -> None:
        self.device = device
        self.traffic = Traffic()

    def join(
        self,
        tensors: Sequence[TensorSpec],  # noqa: ARG002
        options: Mapping[str, str],  # noqa: ARG002
        replica: Replica,
        training_samples: int = 0,  # noqa: ARG002
        stages: Stages = no_stages,  # noqa: ARG002
    ) -> "InProcessMembership":
        """Nothing is to be agreed on."""
        return InProcessMembership(self.device, replica.next_step or 0)

    def close(self, failure: str = "", *, ended: str = "") -> None:
        """Nothing is held."""


class InProcessMembership:
    """The only device's place.

    Args:
        device: its id.
        step: number of the step that comes next.

    """

    def __init__(self, device: str, step: int) -> None:
        self.step = step
        self._device = device
        self._samples = 0
        self._tensors: dict[TensorKey, Tensor] = {}
        self._result = StepResult(step, {}, samples=0, devices=0, loss=math.nan, batches=0)

    def begin(self, samples: int, *, is_repeated: bool = False) -> None:  # noqa: ARG002
        """Begin the next step with a batch of `samples`."""
        self._samples = samples
        self._tensors = {}

    def skip(self) -> None:
        """Let the batch weigh nothing: it is the only one, so that its zeros are the means."""
        self._samples = 0
        self._tensors = {key: torch.zeros_like(value) for key, value in self._tensors.items()}

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Keep one tensor, which is not to be written to before the step is over.

        Raises:
            NonFiniteGradientError: `value` holds NaN or infinity.

        """
        if not is_finite(value):
            raise NonFiniteGradientError(self._device, f"{key[0]} of {key[1]!r}", self.step)
        self._tensors[key] = value.detach() if self._samples else torch.zeros_like(value)

    first_batches = None

    def has_committed(self, step: int) -> bool:
        """Return whether a step is over."""
        return self.step > step

    def complete(
        self,
        loss: float,
        evaluation: Evaluation | None = None,  # noqa: ARG002
        hyperparameters: Mapping[str, float] | None = None,  # noqa: ARG002
        batches: int = 1,
        pace: Pace | None = None,  # noqa: ARG002
    ) -> None:
        """Note the end of the contribution."""
        is_skipped = not self._samples
        self._result = StepResult(
            self.step,
            self._tensors,
            self._samples,
            devices=int(not is_skipped),
            loss=math.nan if is_skipped else loss,
            batches=batches,
        )

    def collect(self, *, catches_up: bool = True) -> StepResult:  # noqa: ARG002
        """Return what was contributed."""
        self.step = self._result.next_step
        return self._result

    def resume_at(self, step: int) -> None:
        """Go on at `step`."""
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: everything arrives."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""
