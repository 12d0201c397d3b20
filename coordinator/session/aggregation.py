"""Aggregation rules: how the contributions to one slice of a tensor become one value.

A new rule is one class and one line in `AGGREGATORS`. Those that must see a whole step are in
`coordinator.session.robust`.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
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
    """Takes the contributions to one slice of one step, in the order in which they happen to come.

    Args:
        is_limited_later: whether the weights may be limited when all are in.

    """

    memory: ClassVar[Memory]

    def __init__(self, *, is_limited_later: bool = False) -> None:
        self.is_limited_later = is_limited_later

    @abstractmethod
    def add(self, device: str, values: Float32Array, weight: int) -> None:
        """Add one device's mean over `weight` samples, once; `values` is not changed, and may be kept."""

    @abstractmethod
    def result(self, most: int | None = None) -> Float32Array:
        """Return what the contributions become, the same in whatever order they came, and give the memory up.

        Args:
            most: the largest weight that counts, if weights are limited later.

        Raises:
            ValueError: nothing was added.

        """


class WeightedMean(Aggregator):
    """Sample-weighted mean, bit for bit the same in whatever order the contributions come.

    The first four are kept as they came (of fp32 the received frame itself, without a copy), and added in float32 in
    the order of the devices' names. If there are more, they are added in fixed point, where no order can matter. If
    weights are limited later, those of one weight are added; devices seldom have many.
    """

    memory = Memory.PER_MODEL

    def __init__(self, *, is_limited_later: bool = False) -> None:
        super().__init__(is_limited_later=is_limited_later)
        self._held: list[tuple[str, Float32Array, int]] = []
        self._sums: dict[int, FixedPointSum] = {}
        """By the weight of what is in it, if that may be limited; else all in one."""
        self._counts: Counter[int] = Counter()

    def add(self, device: str, values: Float32Array, weight: int) -> None:
        """Add one device's mean over `weight` samples, once; `values` is not changed, and may be kept."""
        if self._sums:
            self._add(values, weight)
            return
        self._held.append((device, values, weight))
        if len(self._held) > HELD:
            for _, held, samples in self._held:
                self._add(held, samples)
            self._held = []

    def result(self, most: int | None = None) -> Float32Array:
        """Return the mean over all samples and give the memory up.

        Args:
            most: the largest weight that counts, if weights are limited later.

        Raises:
            ValueError: nothing was added.

        """
        held, sums, counts = self._held, self._sums, self._counts
        self._held, self._sums, self._counts = [], {}, Counter()
        if len(sums) == 1:
            return next(iter(sums.values())).mean()
        if sums:
            weights = {weight: _limited(weight, most) * counts[weight] for weight in sorted(sums)}
            return _mean_of_means([(sums[weight].mean(), count) for weight, count in weights.items()])
        if not held:
            raise ValueError("the mean of no contributions does not exist")
        return _mean_in_order(sorted(((d, v, _limited(w, most)) for d, v, w in held), key=lambda each: each[0]))

    def _add(self, values: Float32Array, weight: int) -> None:
        place = weight if self.is_limited_later else 0
        if place not in self._sums:
            self._sums[place] = FixedPointSum(len(values))
        self._sums[place].add(values, 1 if self.is_limited_later else weight)
        self._counts[place] += 1


def _limited(weight: int, most: int | None) -> int:
    return weight if most is None else min(weight, most)


def _mean_of_means(means: list[tuple[Float32Array, int]]) -> Float32Array:
    """Return the mean of means with their weights, in their order."""
    total = np.zeros(len(means[0][0]))
    for mean, weight in means:
        total += np.multiply(mean, weight, dtype=np.float64)
    total /= sum(weight for _, weight in means)
    return total.astype(np.float32)


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


AGGREGATORS: Mapping[str, type[Aggregator]] = {"mean": WeightedMean}
"""All rules, by the name that a session chooses them by."""
