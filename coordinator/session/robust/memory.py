"""What a rule remembers of each device: the mean of its vectors, in which the latest count most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from edgenewton.v1.codecs import Float32Array

from coordinator.session.robust.vectors import Float64Array, Vector

_BLOCK = 16_384
"""Elements that are worked on at once."""
FORGOTTEN_AFTER = 100
"""Steps without a device, after which what was remembered of it goes."""


@dataclass
class _Remembered:
    pieces: list[Float32Array]
    steps: int
    """In it."""
    last: int


class RunningMeans:
    """A running mean for each device, m = decay m + (1 - decay) x, which begins with 0.

    Args:
        decay: weight of the past.

    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._of: dict[str, _Remembered] = {}
        self._step = 0

    def add(self, devices: Sequence[str], vectors: Sequence[Vector], scales: Float64Array) -> None:
        """Take a step's vectors in, each times its scale `[n]`."""
        self._step += 1
        for device, vector, scale in zip(devices, vectors, scales, strict=True):
            known = self._of.get(device)
            if known is None or [len(piece) for piece in known.pieces] != [len(piece) for piece in vector]:
                known = self._of[device] = _Remembered([np.zeros(len(piece), np.float32) for piece in vector], 0, 0)
            factor = np.float32((1 - self._decay) * scale)
            for mean, piece in zip(known.pieces, vector, strict=True):
                _add_in_blocks(mean, np.float32(self._decay), piece, factor)
            known.steps += 1
            known.last = self._step
        self._of = {device: known for device, known in self._of.items() if known.last > self._step - FORGOTTEN_AFTER}

    def vectors(self, devices: Sequence[str]) -> list[Vector]:
        """Return the means of devices that were added, as they are: see `corrections`."""
        return [self._of[device].pieces for device in devices]

    def corrections(self, devices: Sequence[str]) -> Float64Array:
        """Return what the means are to be divided by, `[n]`, since they began with 0: 1 - decay^steps."""
        return np.array([1 - self._decay ** self._of[device].steps for device in devices])


def _add_in_blocks(mean: Float32Array, decay: np.float32, piece: Float32Array, factor: np.float32) -> None:
    """Make a mean `decay` times itself plus `factor` times a piece, in the cache."""
    addend = np.empty(min(_BLOCK, len(piece)), np.float32)
    for begin in range(0, len(piece), _BLOCK):
        part = mean[begin : begin + _BLOCK]
        part *= decay
        part += np.multiply(piece[begin : begin + _BLOCK], factor, out=addend[: len(part)])
