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
    keep_bits(reduced, bits)
    return reduced


def add(into: Integers, values: Integers, bits: int) -> None:
    """Add integers to others, in place, modulo 2^bits."""
    np.add(into, values, out=into)
    keep_bits(into, bits)


def keep_bits(values: Integers, bits: int) -> None:
    """Reduce integers modulo 2^bits, in place."""
    if bits < 8 * values.itemsize:
        values &= values.dtype.type((1 << bits) - 1)


def signed(values: Integers, bits: int) -> npt.NDArray[np.signedinteger[Any]]:
    """Return integers modulo 2^bits as those of -2^(bits-1) to below 2^(bits-1) that are congruent to them.

    They have as many bytes as the values had.
    """
    shift = 8 * values.itemsize - bits
    shifted = (values << values.dtype.type(shift)).view(f"i{values.itemsize}")
    shifted >>= shifted.dtype.type(shift)
    return shifted


def packed_length(length: int, bits: int) -> int:
    """Return how many bytes so many integers take."""
    whole, left = divmod(bits, 8)
    return length * whole + sum(-(-length * group // 8) for group in _groups(left))


def pack(values: Integers, bits: int) -> bytes:
    """Return integers as bytes: first the lowest byte of all, then the next, then the bits that are left of all.

    Those that fill their type are written one after the other, the lowest byte first.
    What is left is written in groups of four bits, two and one, as far as needed, the lower bits of each integer first.
    For a group the integers are cut into as many equal parts as groups go into a byte, and each byte has one group of
    each part, the first in its lowest bits. So all is done to whole arrays of bytes.
    """
    whole, left = divmod(bits, 8)
    if whole == values.itemsize:
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    parts: list[Any] = [_byte(values, place) for place in range(whole)]
    if left:
        rest = _byte(values, whole)
        for group in _groups(left):
            parts.append(_pack_group(rest, group))
            rest >>= np.uint8(group)
    return b"".join(parts)


def unpack(data: bytes, length: int, bits: int) -> Integers:
    """Return the integers that `pack` wrote; perhaps as a view of them, which cannot be written to.

    Raises:
        WidthError: these are not so many bytes.

    """
    if len(data) != packed_length(length, bits):
        raise WidthError(f"{length} integers of {bits} bits take {packed_length(length, bits)} bytes; {len(data)} came")
    word, (whole, left) = word_of(bits), divmod(bits, 8)
    if whole == word.itemsize:
        return np.frombuffer(data, word.newbyteorder("<")).astype(word, copy=False)
    read = np.frombuffer(data, np.uint8)
    values = read[:length].astype(word) if whole else np.zeros(length, word)
    for place in range(1, whole):
        values |= _at(read[place * length : (place + 1) * length], place, word)
    if left:
        rest, begin, shift = np.zeros(length, np.uint8), whole * length, 0
        for group in _groups(left):
            end = begin - (-length * group // 8)
            part = _unpack_group(read[begin:end], length, group)
            part <<= np.uint8(shift)
            rest |= part
            begin, shift = end, shift + group
        values |= _at(rest, whole, word)
    return values


def _groups(left: int) -> list[int]:
    """Return in which groups so many bits, fewer than eight, are written."""
    return [group for group in (4, 2, 1) if left & group]


def _byte(values: Integers, place: int) -> npt.NDArray[np.uint8]:
    return (values >> values.dtype.type(8 * place) if place else values).astype(np.uint8)


def _at(octets: npt.NDArray[np.uint8], place: int, word: np.dtype[np.unsignedinteger[Any]]) -> Integers:
    shifted: Integers = octets.astype(word)
    shifted <<= word.type(8 * place)
    return shifted


def _pack_group(rest: npt.NDArray[np.uint8], group: int) -> npt.NDArray[np.uint8]:
    size = -(-len(rest) * group // 8)
    packed = rest[:size] & np.uint8((1 << group) - 1)
    for number in range(1, 8 // group):
        part = rest[number * size : (number + 1) * size]
        # What is above the group leaves the byte where that is the last part; else it is cut off.
        low = part & np.uint8((1 << group) - 1)
        low <<= np.uint8(group * number)
        packed[: len(part)] |= low
    return packed


def _unpack_group(packed: npt.NDArray[np.uint8], length: int, group: int) -> npt.NDArray[np.uint8]:
    size = len(packed)
    rest = np.empty(size * 8 // group, np.uint8)
    for number in range(8 // group):
        part = rest[number * size : (number + 1) * size]
        np.right_shift(packed, np.uint8(group * number), out=part)
        part &= np.uint8((1 << group) - 1)
    return rest[:length]
