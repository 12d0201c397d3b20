"""Aggregation rules: how the contributions to one slice of a tensor become one value."""

import numpy as np
from edgenewton.v1.codec import Float32Array


class WeightedMean:
    """Sample-weighted mean, added up on arrival: memory does not grow with the number of devices."""

    def __init__(self) -> None:
        self._sum: Float32Array | None = None
        self._weight = 0

    @property
    def weight(self) -> int:
        """Samples behind the sum so far."""
        return self._weight

    def add(self, values: Float32Array, weight: int) -> None:
        """Add one device's mean over `weight` samples; `values` is not changed or kept."""
        if self._sum is None:
            self._sum = values * np.float32(weight)
        else:
            self._sum += values * np.float32(weight)
        self._weight += weight

    def result(self) -> Float32Array:
        """Return the mean over all samples and give the memory up.

        Raises:
            ValueError: nothing was added.

        """
        if self._sum is None:
            raise ValueError("the mean of no contributions does not exist")
        mean, self._sum = self._sum, None
        mean /= np.float32(self._weight)
        return mean
