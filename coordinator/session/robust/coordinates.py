"""Rules that look at each element on its own: median and trimmed mean (Yin et al. 2018, arxiv.org/abs/1803.01498)."""

import numpy as np

from coordinator.session.robust.rule import Outcome, RobustRule, Stack, tolerated
from coordinator.session.robust.vectors import Float64Array, by_coordinate


class CoordinateMedian(RobustRule):
    """The median of each element over the devices, whatever their samples; of an even number the middle two's mean."""

    takes_sparse = False

    def combine(self, stack: Stack) -> Outcome:
        """Return the medians."""
        return Outcome(by_coordinate(stack.vectors, lambda block: np.median(block, axis=0)))


class TrimmedMean(RobustRule):
    """The mean of each element over the devices, whatever their samples, without its f largest and f smallest values.

    Args:
        bad: f; None for a quarter of the devices.

    """

    takes_sparse = False

    def __init__(self, bad: int | None = None) -> None:
        self._bad = bad

    def combine(self, stack: Stack) -> Outcome:
        """Return the trimmed means."""
        devices = len(stack.devices)
        cut = tolerated(devices, self._bad)

        def trimmed(block: Float64Array) -> Float64Array:
            block.sort(axis=0)
            mean: Float64Array = block[cut : devices - cut].mean(axis=0)
            return mean

        return Outcome(by_coordinate(stack.vectors, trimmed))
