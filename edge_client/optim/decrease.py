"""How much of the loss's predicted decrease each step achieves: what adaptive damping goes by."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from edge_client.optim.damping import AdaptiveDamping
from edge_client.optim.trust_region import BoundedStep

_DECREASE = "loss decrease"
"""Name of the number that the devices tell each other."""


class DecreaseWatch:
    """Compares the loss before and after an update, and tells the other devices in the next step.

    Args:
        adapt_every: steps between two comparisons; None for damping that does not adapt.

    """

    def __init__(self, adapt_every: int | None) -> None:
        self._adaptive = None if adapt_every is None else AdaptiveDamping(adapt_every)
        self._predicted = 0.0
        self._common_share = 1.0
        """Of the predicted decrease, what layers promise that are not personal: all devices predict that alike."""
        self._achieved: float | None = None
        """By the last step, to be told in the next one."""

    @property
    def factor(self) -> float:
        """What the damping is multiplied with."""
        return 1.0 if self._adaptive is None else self._adaptive.factor

    @property
    def scalars(self) -> list[str]:
        """Names of the numbers that the devices tell each other."""
        return [] if self._adaptive is None else [_DECREASE]

    def compares(self, step: int, loss: float, reevaluate: Callable[[], float] | None) -> bool:
        """Whether the loss is compared before and after the update of a step.

        Raises:
            ValueError: it is, and what is needed for it is missing.

        """
        if self._adaptive is None or not self._adaptive.is_due(step):
            return False
        if reevaluate is None or math.isnan(loss):
            raise ValueError(
                "adaptive damping compares the loss of a batch before and after the update: call "
                "optimizer.report(loss) and optimizer.step(reevaluate=lambda: loss_fn(model(x), y).item())"
            )
        return True

    def told(self, step: int) -> Mapping[str, float]:
        """Return what this device tells in a step."""
        if self._adaptive is None or not self._adaptive.is_told(step):
            return {}
        # A device that did not take the last step has no decrease to tell; all contribute the same tensors.
        return {_DECREASE: self._predicted if self._achieved is None else self._achieved}

    def receive(self, means: Mapping[str, float]) -> None:
        """Take what the devices told, if they did."""
        if self._adaptive is not None and _DECREASE in means:
            self._adaptive.observe(means[_DECREASE], self._predicted)

    def predict(self, step: BoundedStep) -> None:
        """Take note of what the quadratic model predicts for a step."""
        self._predicted, self._common_share = step.predicted_decrease, step.common_share

    def achieve(self, decrease: float) -> None:
        """Take note of what the step achieved, in all layers."""
        self._achieved = decrease * self._common_share

    def forget(self) -> None:
        """Let the next step begin, for which nothing has been achieved yet."""
        self._achieved = None

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {"damping_factor": self.factor, "predicted_decrease": self._predicted, "decrease": self._achieved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave, or from the beginning for what it lacks."""
        self._predicted, self._achieved = state.get("predicted_decrease", 0.0), state.get("decrease")
        if self._adaptive is not None:
            self._adaptive.factor = state.get("damping_factor", 1.0)
