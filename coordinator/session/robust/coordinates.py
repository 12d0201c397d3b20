"""Rules that look at each element on its own: median and trimmed mean (Yin et al. 2018, arxiv.org/abs/1803.01498)."""

import numpy as np
from edgenewton.v1.codecs import Float32Array

from coordinator.session.robust.ranks import ranked
from coordinator.session.robust.rule import Outcome, RobustRule, Stack, tolerated
from coordinator.session.robust.vectors import by_coordinate


class CoordinateMedian(RobustRule):
    """The median of each element over the devices, whatever their samples; of an even number the middle two's mean."""

    takes_sparse = False

    def combine(self, stack: Stack) -> Outcome:
        """Return the medians."""
        devices = len(stack.devices)
        middle = range((devices - 1) // 2, devices // 2 + 1)
        return Outcome(by_coordinate(stack.vectors, lambda rows: _mean(ranked(rows, middle))))


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
        kept = range(cut, devices - cut)
        return Outcome(by_coordinate(stack.vectors, lambda rows: _mean(ranked(rows, kept))))


def _mean(rows: list[Float32Array]) -> Float32Array:
    """Return the mean of rows, summed in float64 in their order."""
    if len(rows) == 1:
        return rows[0]
    total = np.add(rows[0], rows[1], dtype=np.float64)
    for row in rows[2:]:
        total += row
    total /= len(rows)
    return total.astype(np.float32)
