"""Aggregation rules: how the contributions to one slice of a tensor become one value."""

import numpy as np
from edgenewton.v1.codecs import Float32Array


class WeightedMean:
    """Sample-weighted mean, added up on arrival: memory does not grow with the number of devices.

    The sum is kept in units of the first weight, so that batches of equal size need no multiplication.
    """

    def __init__(self) -> None:
        self._first: Float32Array | None = None
        self._sum: Float32Array | None = None
        self._unit = 0
        self._weight = 0

    @property
    def weight(self) -> int:
        """Samples behind the sum so far."""
        return self._weight

    def add(self, values: Float32Array, weight: int) -> None:
        """Add one device's mean over `weight` samples; `values` is not changed, and may be kept until the next call."""
        self._weight += weight
        scaled = values if self._unit in (0, weight) else values * np.float32(weight / self._unit)
        if self._sum is not None:
            self._sum += scaled
        elif self._first is not None:
            self._sum, self._first = self._first + scaled, None
        else:
            self._first, self._unit = values, weight

    def result(self) -> Float32Array:
        """Return the mean over all samples and give the memory up.

        Raises:
            ValueError: nothing was added.

        """
        first, total = self._first, self._sum
        self._first = self._sum = None
        if total is not None:
            total *= np.float32(self._unit / self._weight)
            return total
        if first is None:
            raise ValueError("the mean of no contributions does not exist")
        return first
