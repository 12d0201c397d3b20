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
    """Return integers as bytes: `bits` bits each, the lowest first, from the lowest bit of the first byte on."""
    if bits == 8 * values.itemsize:
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    groups = -(-len(values) // 8)
    padded = np.zeros(8 * groups, np.uint64)
    padded[: len(values)] = values
    columns = padded.reshape(groups, 8)
    written = np.zeros((groups, bits), np.uint8)  # eight integers fill whole bytes
    for column in range(8):
        first = column * bits
        for byte in range(first // 8, (first + bits + 7) // 8):
            shift = first - 8 * byte
            moved = columns[:, column] << np.uint64(shift) if shift >= 0 else columns[:, column] >> np.uint64(-shift)
            written[:, byte] |= moved.astype(np.uint8)
    return written.tobytes()[: packed_length(len(values), bits)]


def unpack(data: bytes, length: int, bits: int) -> Integers:
    """Return the integers that `pack` wrote.

    Raises:
        WidthError: these are not so many bytes.

    """
    if len(data) != packed_length(length, bits):
        raise WidthError(f"{length} integers of {bits} bits take {packed_length(length, bits)} bytes; {len(data)} came")
    word = word_of(bits)
    if bits == 8 * word.itemsize:
        return np.frombuffer(data, word.newbyteorder("<")).astype(word)
    groups = -(-length // 8)
    padded = np.zeros(groups * bits, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    columns = padded.reshape(groups, bits)
    values = np.zeros((groups, 8), np.uint64)
    for column in range(8):
        first = column * bits
        for byte in range(first // 8, (first + bits + 7) // 8):
            part = columns[:, byte].astype(np.uint64)
            shift = 8 * byte - first
            values[:, column] |= part << np.uint64(shift) if shift >= 0 else part >> np.uint64(-shift)
    values &= np.uint64((1 << bits) - 1)
    return values.reshape(-1)[:length].astype(word)
