"""Blocks of 256 elements, each with a scale of its own in bf16, and few levels: what int4, ternary and sign share.

Alistarh et al. 2017, "QSGD" (https://arxiv.org/abs/1610.02132), has the scale for each block; here levels are the
nearest and not random, because error feedback makes up for the bias. Elements become symbols (small numbers, a byte
each) before they are packed. Whole planes are packed at once: with m symbols in a byte, n symbols take L = ceil(n / m)
bytes, of which byte i has the symbols i, L + i, 2 L + i and so on. So no operation has a stride.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgenewton.v1.codecs.int8 import BLOCK
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape
from edgenewton.v1.codecs.plain import WORTH_IT, from_bf16, to_bf16
from edgenewton.v1.codecs.scratch import scratch
from edgenewton.v1.tensor_spec import TensorSpec

Symbols = NDArray[np.uint8]
Levels = NDArray[np.int8]

_CHUNK = 256 * BLOCK
"""Elements that are worked on at once, so that what is between two operations stays in the cache."""
_SMALLEST = np.finfo(np.float32).tiny
_LARGEST = (np.finfo(np.float32).max / np.float32(7)).view(np.uint32) & np.uint32(0xFFFF0000)
_LARGEST_SCALE = _LARGEST.view(np.float32)
"""The largest number of bf16 of which the highest of all levels, 7, is a float32."""


class BlockCodec(Codec):
    """Levels times the scale of their block: the scales in bf16, then the levels."""

    is_narrow = True
    is_quantised = True
    needs_feedback = True
    per_byte: ClassVar[int]
    """Symbols in a byte."""
    neutral: ClassVar[int]
    """The symbol of a block that is not finite. Whatever its level, a scale that is not finite makes it so, too."""

    def encoded_size(self, shape: Shape) -> int:
        """Return 2 bytes for each block, and the packed levels."""
        length = math.prod(shape)
        return 2 * -(-length // BLOCK) + -(-length // self.per_byte)

    def suits(self, spec: TensorSpec) -> bool:
        """Tell whether there are enough elements to be worth it."""
        return spec.size >= WORTH_IT

    def encode(self, x: Float32Array, context: Context) -> Data:  # noqa: ARG002
        """Return the scales, then the packed levels."""
        scales = self._rounded_scales(x)
        length = len(x)
        symbols = np.empty(-(-length // self.per_byte) * self.per_byte, dtype=np.uint8)
        symbols[length:] = 0
        with np.errstate(over="ignore", invalid="ignore"):  # of blocks that are not finite
            for elements, blocks, width in _parts(length):
                shape = (-1, width)
                self.quantise(x[elements].reshape(shape), scales[blocks, None], symbols[elements].reshape(shape))
        for block in np.flatnonzero(~np.isfinite(scales)):
            symbols[block * BLOCK : min((block + 1) * BLOCK, length)] = self.neutral
        return b"".join((to_bf16(scales), self.pack(symbols).data))

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return scale times level.

        Raises:
            ValueError: the size is wrong, or a level does not exist.

        """
        self.check_size(data, context.shape)
        length = math.prod(context.shape)
        blocks = -(-length // BLOCK)
        view = memoryview(data).cast("B")
        scales = from_bf16(view[: 2 * blocks])
        levels = self.unpack(np.frombuffer(view[2 * blocks :], dtype=np.uint8), length)
        values = levels.astype(np.float32)
        whole = length - length % BLOCK
        with np.errstate(invalid="ignore", over="ignore"):  # a scale that lies is found by the receiver's check
            values[:whole].reshape(-1, BLOCK)[...] *= scales[: whole // BLOCK, None]
            if whole < length:
                values[whole:] *= scales[-1]
        return values

    @abstractmethod
    def scales(self, rows: Float32Array) -> Float32Array:
        """Return the scale of each row of `[blocks, elements]`, not finite if an element is not."""

    @abstractmethod
    def quantise(self, rows: Float32Array, scales: Float32Array, symbols: Symbols) -> None:
        """Write the symbols of the nearest levels; `scales` are `[blocks, 1]`, a scale of 0 allows any symbol."""

    @abstractmethod
    def pack(self, symbols: Symbols) -> Symbols:
        """Return the bytes of symbols, whose number is a multiple of `per_byte`."""

    @abstractmethod
    def unpack(self, packed: Symbols, length: int) -> Levels:
        """Return the levels in bytes, in memory of their own.

        Raises:
            ValueError: a level does not exist.

        """

    def _rounded_scales(self, x: Float32Array) -> Float32Array:
        scales = np.empty(-(-len(x) // BLOCK), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for elements, blocks, width in _parts(len(x)):
                scales[blocks] = self.scales(x[elements].reshape(-1, width))
        # A block of zeros, or of values so small that their scale is no normal number, is sent as zeros.
        scales[scales < _SMALLEST] = 0
        scales[(scales > _LARGEST_SCALE) & np.isfinite(scales)] = _LARGEST_SCALE
        return from_bf16(to_bf16(scales))


def magnitudes(rows: Float32Array) -> Float32Array:
    """Return |rows|, in memory that the next call uses again."""
    bits = scratch(rows.size).reshape(rows.shape)
    np.bitwise_and(rows.view("<u4"), np.uint32(0x7FFFFFFF), out=bits)
    return bits.view(np.float32)


def largest_magnitudes(rows: Float32Array) -> Float32Array:
    """Return the largest magnitude of each row; NaN counts as the largest of all."""
    # The bits of floats that are not negative are in the order of the floats, and integers compare faster.
    largest: NDArray[np.uint32] = magnitudes(rows).view(np.uint32).max(axis=1)
    return largest.view(np.float32)


def _parts(length: int) -> Iterator[tuple[slice, slice, int]]:
    """Yield elements, the blocks that they are, and the elements of a block; only the last block may have fewer."""
    whole = length - length % BLOCK
    for begin in range(0, whole, _CHUNK):
        end = min(begin + _CHUNK, whole)
        yield slice(begin, end), slice(begin // BLOCK, end // BLOCK), BLOCK
    if whole < length:
        yield slice(whole, length), slice(whole // BLOCK, whole // BLOCK + 1), length - whole
