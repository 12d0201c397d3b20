"""int4: fifteen levels, an eighth of fp32."""

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.blocks import BlockCodec, Levels, Symbols, largest_magnitudes
from edgenewton.v1.codecs.interface import Float32Array
from edgenewton.v1.codecs.scratch import scratch

LEVELS = 7
"""The highest level; the lowest is its opposite. A symbol is a level plus 8."""
_SHIFT = np.float32(1.5 * 2**23 + 8)
"""The last bit of a float32 as large as this is 1: adding it rounds to a whole number, in the lowest bits."""


class Int4(BlockCodec):
    """Levels -7 to 7: error at most 1/13 of the block's largest magnitude."""

    name = "int4"
    number = pb.CODEC_INT4
    per_byte = 2
    neutral = 8

    def scales(self, rows: Float32Array) -> Float32Array:
        """Return the largest magnitude over 7."""
        return largest_magnitudes(rows) / np.float32(LEVELS)

    def quantise(self, rows: Float32Array, scales: Float32Array, symbols: Symbols) -> None:
        """Round to the nearest level."""
        bits = scratch(rows.size).reshape(rows.shape)
        shifted = bits.view(np.float32)
        np.multiply(rows, np.float32(1) / np.where(scales > 0, scales, np.float32(1)), out=shifted)
        shifted += _SHIFT
        np.copyto(symbols, bits, casting="unsafe")  # the lowest byte

    def pack(self, symbols: Symbols) -> Symbols:
        """Return two symbols in a byte, the first in the lower half."""
        lower, upper = symbols.reshape(2, -1)
        packed = upper << np.uint8(4)
        packed |= lower
        return packed

    def unpack(self, packed: Symbols, length: int) -> Levels:
        """Return the symbols less 8."""
        symbols = np.empty((2, len(packed)), dtype=np.uint8)
        np.bitwise_and(packed, np.uint8(15), out=symbols[0])
        np.right_shift(packed, np.uint8(4), out=symbols[1])
        known = symbols.ravel()[:length]
        if length and not known.min():
            raise ValueError("a level of int4 is -8; the lowest is -7")
        known -= np.uint8(8)
        return known.view(np.int8)
