"""ternary: -1, 0 or 1, five of them in a byte: 1.6 bits an element.

Wen et al. 2017, "TernGrad" (https://arxiv.org/abs/1705.07878), which also clips gradients before their largest
magnitude becomes the scale.
"""

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.blocks import BlockCodec, Levels, Symbols, largest_magnitudes
from edgenewton.v1.codecs.interface import Float32Array

CLIP = 2.2
"""The largest scale, in root mean squares of the block: beyond it one large element would zero all others.

A single step of normal values loses least at 1.22. But with error feedback, whose error has tails, what is left to be
sent settles lowest from 2.2 to 2.5: large elements leave at once, and not in many steps.
"""
_TRITS = 5
_END = 3**_TRITS
_SAFE_SQUARES = (np.float32(1e-25), np.float32(1e35))
"""Mean squares of magnitudes that a float32 can square, and add up, without loss."""


class Ternary(BlockCodec):
    """Elements beyond half the scale become ±scale, others zero: no element's error is larger than the element."""

    name = "ternary"
    number = pb.CODEC_TERNARY
    per_byte = _TRITS
    neutral = 1

    def scales(self, rows: Float32Array) -> Float32Array:
        """Return the largest magnitude, or `CLIP` root mean squares if that is less."""
        squares = np.einsum("ij,ij->i", rows, rows) / np.float32(rows.shape[1])
        roots = np.sqrt(squares)
        low, high = _SAFE_SQUARES
        doubtful = np.flatnonzero(~((squares > low) & (squares < high)))
        if len(doubtful):
            exact = rows[doubtful].astype(np.float64)
            roots[doubtful] = np.sqrt(np.square(exact).mean(axis=1))
        scales: Float32Array = np.minimum(largest_magnitudes(rows), np.float32(CLIP) * roots)
        return scales

    def quantise(self, rows: Float32Array, scales: Float32Array, symbols: Symbols) -> None:
        """Compare with half the scale, up and down."""
        half = scales * np.float32(0.5)
        np.greater(rows, half, out=symbols.view(np.bool_))
        symbols += np.greater_equal(rows, -half).view(np.uint8)

    def pack(self, symbols: Symbols) -> Symbols:
        """Return five symbols in a byte, as the digits of a number of base 3; the first is the lowest."""
        planes = symbols.reshape(_TRITS, -1)
        packed: Symbols = planes[-1].copy()
        for plane in planes[-2::-1]:
            packed *= np.uint8(3)
            packed += plane
        return packed

    def unpack(self, packed: Symbols, length: int) -> Levels:
        """Return the symbols less 1."""
        if length and packed.max() >= _END:
            raise ValueError(f"a byte of ternary is {packed.max()}; five levels make less than {_END}")
        symbols = np.empty((_TRITS, len(packed)), dtype=np.uint8)
        rest = packed
        for plane in symbols:
            upper = rest // np.uint8(3)
            np.multiply(upper, np.uint8(3), out=plane)
            np.subtract(rest, plane, out=plane)
            rest = upper
        known = symbols.ravel()[:length]
        known -= np.uint8(1)
        return known.view(np.int8)
