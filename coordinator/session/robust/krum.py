"""Krum and Multi-Krum (Blanchard et al. 2017, arxiv.org/abs/1703.02757): the vectors with the nearest neighbours."""

import numpy as np

from coordinator.session.robust.rule import Outcome, RobustRule, Stack, tolerated
from coordinator.session.robust.vectors import combination, distances, gram


class MultiKrum(RobustRule):
    """The mean of the n - f vectors whose squared distances to their n - f - 2 nearest others are smallest.

    Args:
        bad: f; None for a quarter of the devices.

    """

    def __init__(self, bad: int | None = None) -> None:
        self._bad = bad

    def combine(self, stack: Stack) -> Outcome:
        """Return the weighted mean of the chosen vectors."""
        devices = len(stack.devices)
        bad = tolerated(devices, self._bad)
        near = np.sort(distances(gram(stack.vectors)), axis=1)[:, 1 : max(2, devices - bad - 1)]
        # Of equal scores the first by name: a sort that is not stable would choose by memory.
        order = np.argsort(near.sum(axis=1), kind="stable")
        chosen = order[: self._kept(devices, bad)]
        weights = np.zeros(devices)
        weights[chosen] = stack.weights[chosen]
        return Outcome(combination(stack.vectors, weights / weights.sum()))

    def _kept(self, devices: int, bad: int) -> int:
        return devices - bad


class Krum(MultiKrum):
    """The one vector whose squared distances to its n - f - 2 nearest others are smallest."""

    def _kept(self, devices: int, bad: int) -> int:  # noqa: ARG002
        return 1
