"""The mean of those devices that have been alike for some time.

In one step an attack can hide behind the noise of small batches: each value is as far from the mean as an honest one's
may be ("a little is enough", Baruch et al. 2019). Over some steps noise averages out and an attack does not. So devices
are compared by the running means of what they sent (Allen-Zhu et al. 2021, "Byzantine-Resilient Non-Convex SGD",
arxiv.org/abs/2012.14368, sums them over a window), and those are chosen that vary least among each other (as in Minimum
Diameter Averaging, El Mhamdi et al. 2018, arxiv.org/abs/1802.07927). What is averaged is what the chosen sent in this
step, so nothing lags behind.
"""

import numpy as np

from coordinator.session.robust.clipping import NormBound, long_ones
from coordinator.session.robust.memory import RunningMeans
from coordinator.session.robust.rule import Outcome, RobustRule, Stack, tolerated
from coordinator.session.robust.vectors import Float64Array, combination, distances, gram

DECAY = 0.9
"""Of the running means: about ten steps count."""
TOLERANCE = 1.25
"""A device is trusted whose running mean is at most so many times as far from the chosen ones' as they are from each
other: with honest devices alone nearly all are in."""


class HistoryMean(RobustRule):
    """The mean of clipped vectors, without up to f devices that have been unlike the others.

    1. Clip: y_i = x_i min(1, b / |x_i|), where b is the running median of the median norms.
    2. Remember: m_i = 0.9 m_i + 0.1 y_i, divided by 1 - 0.9^t.
    3. Choose: f times leave out the device with the largest sum of squared distances to the others that are left.
       Those take back who is within `TOLERANCE` of them.
    4. Return the weighted mean of the y_i of the chosen.

    Args:
        bad: f; None for a quarter of the devices.

    """

    copies = 2

    def __init__(self, bad: int | None = None) -> None:
        self._bad = bad
        self._bound = NormBound()
        self._means = RunningMeans(DECAY)

    def combine(self, stack: Stack) -> Outcome:
        """Return the weighted mean of the chosen devices' clipped vectors."""
        devices = len(stack.devices)
        scales = self._bound.scales(np.sqrt(gram(stack.vectors).diagonal()))
        self._means.add(stack.devices, stack.vectors, scales)
        corrections = self._means.corrections(stack.devices)
        products = gram(self._means.vectors(stack.devices)) / np.outer(corrections, corrections)
        apart = distances(products)
        chosen = alike(apart, devices - tolerated(devices, self._bad))
        weights = np.where(chosen, stack.weights, 0.0)
        pieces = combination(stack.vectors, weights * scales / weights.sum())
        left_out = [device for device, is_in in zip(stack.devices, chosen, strict=True) if not is_in]
        reason = "what it sent over the last steps was unlike what most sent, and did not count"
        return Outcome(pieces, {**dict.fromkeys(left_out, reason), **long_ones(stack, scales)}, left_out)


def alike(apart: Float64Array, wanted: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which of n devices are alike, `[n]`.

    Args:
        apart: squared distances, `[n, n]`.
        wanted: so many are chosen at least.

    """
    chosen = np.ones(len(apart), bool)
    while chosen.sum() > wanted:
        sums = np.where(chosen, apart[:, chosen].sum(axis=1), -1.0)
        chosen[int(np.argmax(sums))] = False
    few = int(chosen.sum())
    if few < 2:
        return chosen
    usual = apart[np.ix_(chosen, chosen)].sum() / (few * (few - 1))
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = chosen | (apart[:, chosen].mean(axis=1) <= TOLERANCE**2 * usual)
    return found
