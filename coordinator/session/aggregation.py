"""Aggregation rules: how the contributions to one slice of a tensor become one value.

A new rule is one class and one line in `AGGREGATORS`. Those that must see a whole step are in
`coordinator.session.robust`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum
from typing import ClassVar

import numpy as np
from edgenewton.v1.codecs import Float32Array

from coordinator.session.fixed_point import FixedPointSum

HELD = 4
"""So many contributions to a slice are kept as they came."""


class Memory(Enum):
    """What a rule keeps of a model with P elements, of which N devices contribute."""

    PER_MODEL = "O(P)"
    PER_DEVICE = "O(N P)"


class Aggregator(ABC):
    """Takes the contributions to one slice of one step, in the order in which they happen to come."""

    memory: ClassVar[Memory]

    @abstractmethod
    def add(self, device: str, values: Float32Array, weight: int) -> None:
        """Add one device's mean over `weight` samples, once; `values` is not changed, and may be kept."""

    @abstractmethod
    def result(self) -> Float32Array:
        """Return what the contributions become, the same in whatever order they came, and give the memory up.

        Raises:
            ValueError: nothing was added.

        """


class WeightedMean(Aggregator):
    """Sample-weighted mean, bit for bit the same in whatever order the contributions come.

    The first four are kept as they came (of fp32 the received frame itself, without a copy), and added in float32 in
    the order of the devices' names. If there are more, they are added in fixed point, where no order can matter.
    """

    memory = Memory.PER_MODEL

    def __init__(self) -> None:
        self._held: list[tuple[str, Float32Array, int]] = []
        self._sum: FixedPointSum | None = None

    def add(self, device: str, values: Float32Array, weight: int) -> None:
        """Add one device's mean over `weight` samples, once; `values` is not changed, and may be kept."""
        if self._sum is not None:
            self._sum.add(values, weight)
            return
        self._held.append((device, values, weight))
        if len(self._held) > HELD:
            self._sum = FixedPointSum(len(values))
            for _, held, samples in self._held:
                self._sum.add(held, samples)
            self._held = []

    def result(self) -> Float32Array:
        """Return the mean over all samples and give the memory up.

        Raises:
            ValueError: nothing was added.

        """
        held, total = self._held, self._sum
        self._held, self._sum = [], None
        if total is not None:
            return total.mean()
        if not held:
            raise ValueError("the mean of no contributions does not exist")
        return _mean_in_order(sorted(held, key=lambda contribution: contribution[0]))


def _mean_in_order(contributions: list[tuple[str, Float32Array, int]]) -> Float32Array:
    """Return the mean, summed in units of the first weight: batches of equal size need no multiplication."""
    _, first, unit = contributions[0]
    if len(contributions) == 1:
        return first
    total: Float32Array | None = None
    for _, values, weight in contributions[1:]:
        scaled = values if weight == unit else values * np.float32(weight / unit)
        total = first + scaled if total is None else np.add(total, scaled, out=total)
    assert total is not None
    total *= np.float32(unit / sum(weight for _, _, weight in contributions))
    return total


AGGREGATORS: Mapping[str, Callable[[], Aggregator]] = {"mean": WeightedMean}
"""All rules, by the name that a session chooses them by."""
