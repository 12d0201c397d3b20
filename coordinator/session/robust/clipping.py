"""Clipping: no device's vector is longer than is usual."""

from collections import deque
from collections.abc import Mapping

import numpy as np

from coordinator.session.robust.rule import Outcome, RobustRule, Stack
from coordinator.session.robust.vectors import Float64Array, combination, gram

WINDOW = 10
"""Steps over which the bound is a median."""
UNLIKE = 10.0
"""Times the bound from which on a norm is worth telling: honest devices' differ by less while they learn the same."""


class NormBound:
    """The bound on the norms of vectors: the running median of the devices' median norms."""

    def __init__(self) -> None:
        self._medians: deque[float] = deque(maxlen=WINDOW)

    def scales(self, norms: Float64Array) -> Float64Array:
        """Take the norms of a step in, and return what its vectors are to be multiplied with, `[n]`, at most 1."""
        self._medians.append(float(np.median(norms)))
        bound = float(np.median(self._medians))
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Float64Array = np.where(norms > bound, bound / norms, 1.0)
        return found


class ClippedMean(RobustRule):
    """The mean of vectors of which none is longer than the running median of the median norms.

    It bounds the length of what a device adds, not its direction.
    """

    def __init__(self) -> None:
        self._bound = NormBound()

    def combine(self, stack: Stack) -> Outcome:
        """Return the weighted mean of the clipped vectors."""
        norms = np.sqrt(gram(stack.vectors).diagonal())
        scales = self._bound.scales(norms)
        return Outcome(combination(stack.vectors, stack.weights * scales), long_ones(stack, scales))


def long_ones(stack: Stack, scales: Float64Array) -> Mapping[str, str]:
    """Return the devices whose vectors were clipped by far, and how."""
    return {
        device: f"its norm was {1 / scale:.3g} times what is usual, and was clipped"
        for device, scale in zip(stack.devices, scales, strict=True)
        if scale * UNLIKE < 1
    }
