"""Positions as entropy-coded gaps: Golomb codes whose divisor is a power of two.

Golomb 1966, "Run-length encodings" (https://doi.org/10.1109/TIT.1966.1053907); Rice 1979, "Some Practical Universal
Noiseless Coding Techniques" (JPL 79-22). The gap before each position (so many elements are left out) has a remainder
of b bits and a quotient in unary: as many 0 as it says, then a 1. All remainders come first, one bit of all of them
after the other (lowest first), then, from a new byte, all quotients; so each part is one operation on bits. The first
bit of a byte is its lowest. b follows from the numbers of elements alone.
"""

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def remainder_bits(count: int, length: int) -> int:
    """Return b for `count` positions among `length`.

    Gaps of positions drawn at random are geometric; for these it is the best (Kiely 2004, "Selecting the Golomb
    Parameter in Rice Coding", IPN Progress Report 42-159): 1 + floor(log2(0.4812 m)), with m = length / count - 1/2.
    In integers, because sender and receiver must agree to the last bit.
    """
    return (4812 * (2 * length - count) // (20_000 * count)).bit_length() if count else 0


def smallest_size(count: int, length: int) -> int:
    """Return the fewest bytes that `count` positions among `length` take: all quotients are zero."""
    return _remainder_size(count, length) + -(-count // 8)


def largest_size(count: int, length: int) -> int:
    """Return the most bytes: gaps add up to the elements that are left out, at most."""
    if not count:
        return 0
    quotients = (length - count) >> remainder_bits(count, length)
    return _remainder_size(count, length) + -(-(count + quotients) // 8)


def write(positions: Positions, length: int) -> bytes:
    """Return the bytes of positions among `length` elements, in ascending order."""
    count = len(positions)
    if not count:
        return b""
    bits = remainder_bits(count, length)
    gaps = np.diff(positions, prepend=-1) - 1
    remainders = np.empty((bits, count), dtype=np.uint8)
    for bit in range(bits):
        remainders[bit] = gaps >> bit & 1
    ends = np.cumsum((gaps >> bits) + 1) - 1
    quotients = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    quotients[ends] = 1
    return b"".join(np.packbits(part, bitorder="little").tobytes() for part in (remainders.ravel(), quotients))


def read(data: Bytes, count: int, length: int) -> Positions:
    """Return `count` positions, in ascending order and below `length`.

    Raises:
        ValueError: the bytes are those of other positions, or of none.

    """
    size = _remainder_size(count, length)
    ends = np.flatnonzero(np.unpackbits(data[size:], bitorder="little"))
    if len(ends) != count:
        raise ValueError(f"{len(ends)} positions came instead of {count}")
    if not count:
        return ends
    if ends[-1] >> 3 != len(data) - size - 1:
        raise ValueError("bytes came after the last position")
    gaps = np.diff(ends, prepend=-1) - 1
    bits = remainder_bits(count, length)
    gaps <<= bits
    remainders = np.unpackbits(data[:size], count=bits * count, bitorder="little").reshape(bits, count)
    for bit, plane in enumerate(remainders):
        gaps += plane.astype(np.int64) << bit
    gaps += 1
    positions = np.cumsum(gaps) - 1
    if positions[-1] >= length:
        raise ValueError(f"position {positions[-1]} came of {length} elements")
    return positions


def _remainder_size(count: int, length: int) -> int:
    return -(-remainder_bits(count, length) * count // 8)
