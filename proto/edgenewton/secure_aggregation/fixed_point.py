"""Vectors of reals as integers that can be added under masks: all devices take the same scales, block by block."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgenewton.secure_aggregation.modular_integers import MOST_BITS, Integers, bits_for_sum, reduce, signed, word_of

Float32Array = npt.NDArray[np.float32]

BLOCK = 256
"""Elements that share a scale."""
_CHUNK = 256 * BLOCK
"""Elements that are rounded at once: so many stay in a core's own cache meanwhile."""
EXACT_RESOLUTION = 2.0**-30
"""Of values that have no scale yet, or must not be rounded to few bits."""
_EXACT_BITS = 24
"""Of an integer that a float32 has exactly."""
_LEAST_STEP = np.float32(1e-37)
"""Of smaller steps there is no inverse in float32; such blocks are written as zeros."""


@dataclass(frozen=True)
class FixedPoint:
    """How the elements of a vector are written: in few bits as parts of their block's scale, or finely in 64.

    Args:
        bits: of each device's integers, sign included.
        devices: so many vectors may be added.
        scales: of the blocks (float32), by which the largest integer stands for the largest magnitude: a block of scale
            0 is written as zeros. None for elements that are written finely: in 64 bits, each a multiple of 2^-30.
        unit: what 1 stands for, of elements that are multiples of it already: they are written in `bits`, without
            scales.

    """

    bits: int
    devices: int
    scales: Float32Array | None = None
    unit: float | None = None

    @cached_property
    def sum_bits(self) -> int:
        """Bits of the sum, and so of each masked integer."""
        return MOST_BITS if self._is_fine else bits_for_sum(self.bits, self.devices)

    @cached_property
    def largest(self) -> int:
        """The largest integer of a device."""
        if self._is_fine:
            return (1 << (MOST_BITS - 2)) // self.devices  # a bit less: float64 rounds integers of that size
        return (1 << (self.bits - 1)) - 1

    def encode(self, values: npt.NDArray[np.floating[Any]]) -> "Encoded":
        """Return values as integers modulo 2^`sum_bits`, rounded to nearest; those that are too large are clipped."""
        if self.scales is not None:
            return self._encode_blocks(values, self.scales)
        levels = values.astype(np.float64)
        levels /= self._resolution
        clipped = self._round(levels)
        return Encoded(self, reduce(levels.astype(np.int64), self.sum_bits), clipped)

    def _encode_blocks(self, values: npt.NDArray[np.floating[Any]], scales: Float32Array) -> "Encoded":
        """Return `encode` of values with scales, in float32 and block by block: that takes a fifth of the time."""
        steps = scales / np.float32(self.largest)
        steps[steps < _LEAST_STEP] = 0.0
        inverse = np.divide(np.float32(1.0), steps, out=np.zeros_like(steps), where=steps > 0)
        integers, clipped = np.empty(len(values), f"i{word_of(self.sum_bits).itemsize}"), 0
        for begin in range(0, len(values), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            levels = _times_blocks(values[part], inverse[begin // BLOCK :])
            clipped += self._round(levels)
            np.copyto(integers[part], levels, casting="unsafe")
        return Encoded(self, reduce(integers, self.sum_bits), clipped)

    def _round(self, levels: npt.NDArray[np.floating[Any]]) -> int:
        """Round to nearest and clip, in place; return how many were too large."""
        np.rint(levels, out=levels)
        # Few vectors have any: to look for them takes a fraction of the time in which all could be clipped.
        if not levels.size or max(levels.max(), -levels.min()) <= self.largest:
            return 0
        count = int(np.count_nonzero(np.abs(levels) > self.largest))
        np.clip(levels, -self.largest, self.largest, out=levels)
        return count

    def decode(self, summed: Integers) -> npt.NDArray[np.floating[Any]]:
        """Return the sum of the devices' values, from that of their integers: float64, or float32 of few bits."""
        integers = signed(summed, self.sum_bits)
        if self.scales is None:
            return integers * self._resolution
        # All integers of so many bits are a float32 each: the product is the nearest to the exact one.
        kind: Any = np.float32 if self.sum_bits <= _EXACT_BITS else np.float64
        return _times_blocks(integers.astype(kind), self.scales.astype(kind) / kind(self.largest))

    @property
    def _is_fine(self) -> bool:
        return self.scales is None and self.unit is None

    @property
    def _resolution(self) -> float:
        return EXACT_RESOLUTION if self.unit is None else self.unit


@dataclass(frozen=True)
class Encoded:
    """What became of a vector."""

    form: FixedPoint
    integers: Integers
    """Modulo 2^`FixedPoint.sum_bits`."""
    clipped: int
    """How many values were too large for their scale."""

    @property
    def written(self) -> Float32Array:
        """What they stand for; the rest of the values is for the next time."""
        return self.form.decode(self.integers).astype(np.float32, copy=False)


def _times_blocks(values: npt.NDArray[Any], factors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a vector whose blocks are multiplied by a factor each."""
    length, whole = len(values), len(values) // BLOCK
    product = np.empty(length, factors.dtype)
    rows = slice(0, whole * BLOCK)
    np.multiply(values[rows].reshape(-1, BLOCK), factors[:whole, None], out=product[rows].reshape(-1, BLOCK))
    if whole * BLOCK < length:
        np.multiply(values[whole * BLOCK :], factors[whole], out=product[whole * BLOCK :])
    return product


def _largest_of_blocks(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Return the largest magnitude of each block."""
    begins = np.arange(0, len(values), BLOCK)
    return np.maximum(np.maximum.reduceat(values, begins), -np.minimum.reduceat(values, begins))


class Scales:
    """The common scales of a vector, as they follow from what was exchanged; the same on all who see that.

    A block's scale is the largest magnitude of late of the mean device's share of the sum, times a margin for devices
    that differ. The margin follows from how many values were clipped: it grows at once and shrinks slowly.

    """

    _DECAY = 0.9
    _FIRST_MARGIN = 3.0
    _LEAST_MARGIN = 1.0
    _MOST_CLIPPED = 1e-3
    _FEW_CLIPPED = 1e-4

    def __init__(self) -> None:
        self._envelope: npt.NDArray[np.float64] | None = None
        self.margin = self._FIRST_MARGIN

    @property
    def current(self) -> Float32Array | None:
        """Scales of the blocks (float32); None as long as nothing was exchanged but zeros."""
        if self._envelope is None or not self._envelope.any():
            return None
        # Of a block that was zero so far, something may come all the same.
        floor = 1e-3 * self._envelope.max()
        scales: Float32Array = (self.margin * np.maximum(self._envelope, floor)).astype(np.float32)
        return scales

    def update(self, summed: npt.NDArray[np.floating[Any]], devices: int, clipped: int) -> None:
        """Take note of an exchange.

        Args:
            summed: the sum of the devices' values.
            devices: how many they are.
            clipped: how many of their values were clipped, in all.

        """
        blocks = _largest_of_blocks(summed).astype(np.float64) / devices
        self._envelope = blocks if self._envelope is None else np.maximum(blocks, self._DECAY * self._envelope)
        part = clipped / (devices * len(summed))
        if part > self._MOST_CLIPPED:
            self.margin *= 1.5
        elif part < self._FEW_CLIPPED:
            self.margin = max(self._LEAST_MARGIN, self.margin / 1.05)
