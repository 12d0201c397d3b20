"""The protobuf wire format, as far as one large bytes field of a nested message needs it.

Protobuf's own parser copies a bytes field twice. Here it becomes a view; all other fields are left, as bytes, to the
generated code (https://protobuf.dev/programming-guides/encoding/). What no honest writer writes is refused as soon as
it is met, so that it costs nothing: numbers in more bytes than they take, and groups.
"""

from collections.abc import Callable
from typing import TypeVar

VARINT, I64, LEN, I32 = 0, 1, 2, 5
_MAX_FIELD = (1 << 29) - 1
_MAX_VARINT = 0xFFFF_FFFF_FFFF_FFFF

_T = TypeVar("_T")


class WireError(ValueError):
    """Bytes are no protobuf message; the text goes on after the name of what they should be."""


def write_varint(value: int) -> bytes:
    """Return a number that is not negative in base 128, least significant group first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def write_field(number: int, size: int) -> bytes:
    """Return what stands before the `size` bytes of a field: its tag and their count."""
    return write_varint(number << 3 | LEN) + write_varint(size)


def read_frame(data: bytes, outer: int, take: Callable[[int, int], _T], *, rest_bytes: int) -> tuple[bytes, list[_T]]:
    """Take the nested messages of field `outer` out of a message.

    Args:
        data: the message.
        outer: number of the field with the nested messages.
        take: told where each nested message begins and ends as it is met, e.g. for `split`.
        rest_bytes: most bytes of the message without them.

    Returns:
        The message without the nested ones, and what `take` has made of these.

    Raises:
        WireError: the bytes are no protobuf message, or are larger than they may be.
        ValueError: `take` has found something wrong; what comes after it is not looked at.

    """
    view = memoryview(data)
    rest: list[memoryview] = []
    taken: list[_T] = []
    position, end, left = 0, len(data), rest_bytes
    nested = outer << 3 | LEN
    while position < end:
        start = position
        tag, position = read_varint(data, position, end)
        begin, position = skip(data, tag, position, end)
        if tag == nested:
            taken.append(take(begin, position))
            continue
        left -= position - start
        if left < 0:
            raise WireError(f"has more than {rest_bytes} bytes besides its slices")
        rest.append(view[start:position])
    return b"".join(rest), taken


def split(data: bytes, position: int, end: int, inner: int, *, header_bytes: int) -> tuple[bytes, memoryview]:
    """Take the data of field `inner` out of a nested message between two positions.

    Args:
        data: the message that it is in.
        position: where it begins.
        end: where it ends.
        inner: number of the field with the data.
        header_bytes: most bytes of it without the data.

    Returns:
        Its bytes without the data, and the data as a view.

    Raises:
        WireError: the bytes are no protobuf message, or are larger than they may be.

    """
    view = memoryview(data)
    header: list[memoryview] = []
    payload: memoryview | None = None
    left, inner = header_bytes, inner << 3 | LEN
    while position < end:
        start = position
        tag, position = read_varint(data, position, end)
        begin, position = skip(data, tag, position, end)
        if tag == inner:
            if payload is not None:
                raise WireError("has a slice with data twice")
            payload = view[begin:position]
            continue
        left -= position - start
        if left < 0:
            raise WireError(f"has a slice of more than {header_bytes} bytes besides its data")
        header.append(view[start:position])
    return b"".join(header), view[end:end] if payload is None else payload


def skip(data: bytes, tag: int, position: int, end: int) -> tuple[int, int]:
    """Return where the content of a field begins and ends whose tag ends at a position.

    Raises:
        WireError: there is no such field.

    """
    wire_type = tag & 7
    if not 1 <= tag >> 3 <= _MAX_FIELD:
        raise WireError(f"is no valid protobuf message: field number {tag >> 3}")
    begin = position
    if wire_type == VARINT:
        _, position = read_varint(data, position, end)
    elif wire_type == LEN:
        size, begin = read_varint(data, position, end)
        position = begin + size
    elif wire_type == I64:
        position += 8
    elif wire_type == I32:
        position += 4
    else:
        raise WireError(f"is no valid protobuf message: wire type {wire_type}")
    if position > end:
        raise WireError("is no valid protobuf message: it is truncated")
    return begin, position


def read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the number at a position, and where it ends.

    Raises:
        WireError: it is none of 64 bits, or takes more bytes than it must.

    """
    if position >= end:
        raise WireError("is no valid protobuf message: it is truncated")
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    for shift in range(7, 70, 7):
        position += 1
        if position >= end:
            raise WireError("is no valid protobuf message: it is truncated")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte:
                raise WireError("is no canonical protobuf message: a number takes more bytes than it must")
            if value > _MAX_VARINT:
                break
            return value, position + 1
    raise WireError("is no valid protobuf message: a number has more than 64 bits")
