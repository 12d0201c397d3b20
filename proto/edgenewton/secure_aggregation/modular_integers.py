"""Integers modulo 2^k, of which masked vectors consist: how they are held, added, and written."""

from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.unsignedinteger[Any]]
"""Integers modulo 2^bits, in the narrowest of uint8, uint16, uint32 and uint64; upper bits are 0."""

MOST_BITS = 64


class WidthError(ValueError):
    """Bytes that do not hold so many integers of so many bits."""


def word_of(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the narrowest unsigned type that holds integers of so many bits, 1 to 64."""
    if not 1 <= bits <= MOST_BITS:
        raise WidthError(f"integers have 1 to {MOST_BITS} bits here, not {bits}")
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if bits <= 8 * size))


def bits_for_sum(bits: int, terms: int) -> int:
    """Return how many bits the sum of so many signed integers of `bits` bits takes at most."""
    return bits + max(terms - 1, 0).bit_length()


def reduce(values: npt.NDArray[np.signedinteger[Any]], bits: int) -> Integers:
    """Return signed integers modulo 2^bits."""
    word = word_of(bits)
    reduced: Integers = values.astype(word)
    reduced &= word.type((1 << bits) - 1)
    return reduced


def add(into: Integers, values: Integers, bits: int) -> None:
    """Add integers to others, in place, modulo 2^bits."""
    np.add(into, values, out=into)
    into &= into.dtype.type((1 << bits) - 1)


def keep_bits(values: Integers, bits: int) -> None:
    """Reduce integers modulo 2^bits, in place."""
    values &= values.dtype.type((1 << bits) - 1)


def signed(values: Integers, bits: int) -> npt.NDArray[np.int64]:
    """Return integers modulo 2^bits as those of -2^(bits-1) to below 2^(bits-1) that are congruent to them, int64."""
    shift = np.int64(MOST_BITS - bits)
    return (values.astype(np.uint64) << shift.astype(np.uint64)).view(np.int64) >> shift


def packed_length(length: int, bits: int) -> int:
    """Return how many bytes so many integers take."""
    return (length * bits + 7) // 8


def pack(values: Integers, bits: int) -> bytes:
    """Return integers as bytes: first the whole bytes of each, the lowest first, then the bits that are left of all.

    What is left of eight integers fills whole bytes, as many as each has bits left, the first in the lowest bits.
    """
    length, (whole, left) = len(values), divmod(bits, 8)
    octets = (
        np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).reshape(length, values.itemsize)
    )
    lower = octets[:, :whole].tobytes()
    if not left:
        return lower
    rest = np.zeros(-(-length // 8) * 8, np.uint64)
    rest[:length] = octets[:, whole]
    columns = rest.reshape(-1, 8)
    words = columns[:, 0].copy()
    for column in range(1, 8):
        words |= columns[:, column] << np.uint64(column * left)
    upper = words.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :left].tobytes()
    return lower + upper[: packed_length(length, left)]


def unpack(data: bytes, length: int, bits: int) -> Integers:
    """Return the integers that `pack` wrote.

    Raises:
        WidthError: these are not so many bytes.

    """
    if len(data) != packed_length(length, bits):
        raise WidthError(f"{length} integers of {bits} bits take {packed_length(length, bits)} bytes; {len(data)} came")
    word, (whole, left) = word_of(bits), divmod(bits, 8)
    read = np.frombuffer(data, np.uint8)
    octets = np.zeros((length, word.itemsize), np.uint8)
    octets[:, :whole] = read[: whole * length].reshape(length, whole)
    if left:
        upper = np.zeros(-(-length // 8) * left, np.uint8)
        upper[: len(data) - whole * length] = read[whole * length :]
        padded = np.zeros((-(-length // 8), 8), np.uint8)
        padded[:, :left] = upper.reshape(-1, left)
        words = padded.view("<u8").astype(np.uint64, copy=False)
        shifts = np.arange(8, dtype=np.uint64) * np.uint64(left)
        rest = (words >> shifts) & np.uint64((1 << left) - 1)
        octets[:, whole] = rest.reshape(-1)[:length]
    return octets.view(word.newbyteorder("<")).reshape(length).astype(word, copy=False)
