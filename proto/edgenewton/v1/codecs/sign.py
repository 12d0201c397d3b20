"""sign: one bit an element, times the mean magnitude of its block.

Bernstein et al. 2018, "signSGD" (https://arxiv.org/abs/1802.04434); with a scale as in Karimireddy et al. 2019
(https://arxiv.org/abs/1901.09847). Of all scales, the mean magnitude leaves the smallest squared error.
"""

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.blocks import BlockCodec, Levels, Symbols, magnitudes
from edgenewton.v1.codecs.interface import Float32Array


class Sign(BlockCodec):
    """A bit for each element, set if it is negative."""

    name = "sign"
    number = pb.CODEC_SIGN
    per_byte = 8
    neutral = 0

    def scales(self, rows: Float32Array) -> Float32Array:
        """Return the mean magnitude."""
        # Divided first, no sum of finite magnitudes overflows.
        shares = magnitudes(rows)
        shares *= np.float32(1 / rows.shape[1])
        means: Float32Array = np.einsum("ij->i", shares)
        return means

    def quantise(self, rows: Float32Array, scales: Float32Array, symbols: Symbols) -> None:  # noqa: ARG002
        """Compare with zero."""
        np.less(rows, np.float32(0), out=symbols.view(np.bool_))

    def pack(self, symbols: Symbols) -> Symbols:
        """Return eight bits in a byte, the first the lowest."""
        return np.packbits(symbols, bitorder="little")

    def unpack(self, packed: Symbols, length: int) -> Levels:
        """Return 1 for a bit of 0 and -1 for one of 1."""
        levels = np.unpackbits(packed, count=length, bitorder="little").view(np.int8)
        levels *= np.int8(-2)
        levels += np.int8(1)
        return levels
