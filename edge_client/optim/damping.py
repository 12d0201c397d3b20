"""Damping that adapts: it follows how well the quadratic model predicts the loss."""

import math
from dataclasses import dataclass

_GROW_BELOW = 0.25
_SHRINK_ABOVE = 0.75


@dataclass
class AdaptiveDamping:
    """Levenberg and Marquardt's rule for the damping (Martens & Grosse 2015, section 6.5).

    The ratio of the loss's actual decrease to the one that the quadratic model predicted says how far the model can
    be trusted: below 1/4 the damping grows, above 3/4 it shrinks.
    """

    every: int
    """Steps between two observations."""
    factor: float = 1.0
    """What the damping is multiplied with."""
    rate: float = 0.8
    """Damping shrinks by this, and grows by its inverse, at each observation."""
    smallest: float = 1e-4
    largest: float = 1e4

    def is_due(self, step: int) -> bool:
        """Whether the loss is compared before and after the update of a step."""
        return step % self.every == 0

    def is_told(self, step: int) -> bool:
        """Whether the devices tell each other in a step what the one before it achieved."""
        return step > 0 and self.is_due(step - 1)

    def observe(self, actual: float, predicted: float) -> None:
        """Take note of a step.

        Args:
            actual: decrease of the loss.
            predicted: what the quadratic model predicted.

        """
        ratio = actual / predicted if predicted > 0 and math.isfinite(actual) else 0.0
        if ratio < _GROW_BELOW:
            self.factor = min(self.factor / self.rate, self.largest)
        elif ratio > _SHRINK_ABOVE:
            self.factor = max(self.factor * self.rate, self.smallest)
