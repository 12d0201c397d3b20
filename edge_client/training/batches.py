"""Which samples of a device belong to which step."""

import numpy as np
from numpy.typing import NDArray


class BatchOrder:
    """Goes through a device's samples in a new order each time, in batches that are always full.

    The order depends on seed and step alone, so that training can go on at any step.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        if samples < 1:
            raise ValueError("the device has no training samples")
        self._samples = samples
        self._batch_size = batch_size
        self._seed = seed
        self._pass = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the positions of the samples in a step's batch, `[batch_size]`."""
        first = step * self._batch_size
        return np.array([self._sample(position) for position in range(first, first + self._batch_size)])

    def _sample(self, position: int) -> int:
        number, place = divmod(position, self._samples)
        if number != self._pass:
            self._pass = number
            self._order = np.random.default_rng((self._seed, number)).permutation(self._samples)
        return int(self._order[place])
