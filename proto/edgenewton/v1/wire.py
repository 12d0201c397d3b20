"""The protobuf wire format, as far as one large bytes field of a nested message needs it.

Protobuf's own parser copies a bytes field twice. Here it becomes a view; all other fields are left, as bytes, to the
generated code (https://protobuf.dev/programming-guides/encoding/).
"""

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_MAX_FIELD = (1 << 29) - 1

_Field = tuple[int, int, int, int, int]


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
    return write_varint(number << 3 | _LEN) + write_varint(size)


def read_frame(data: bytes, outer: int, inner: int) -> tuple[bytes, list[tuple[bytes, memoryview]]]:
    """Take the nested messages of field `outer` out of a message, and the data of field `inner` out of each.

    Returns:
        The message without them, and for each of them its bytes without the data, and the data as a view.

    Raises:
        ValueError: the bytes are no protobuf message.

    """
    view = memoryview(data)
    rest: list[memoryview] = []
    nested: list[tuple[bytes, memoryview]] = []
    position, end = 0, len(data)
    while position < end:
        number, wire_type, begin, position, start = _read_field(data, position, end)
        if number == outer and wire_type == _LEN:
            nested.append(_split(data, view, begin, position, inner))
        else:
            rest.append(view[start:position])
    return b"".join(rest), nested


def _split(data: bytes, view: memoryview, position: int, end: int, inner: int) -> tuple[bytes, memoryview]:
    header: list[memoryview] = []
    payload = view[position:position]
    while position < end:
        number, wire_type, begin, position, start = _read_field(data, position, end)
        if number == inner and wire_type == _LEN:
            payload = view[begin:position]  # as in protobuf, the last one counts
        else:
            header.append(view[start:position])
    return b"".join(header), payload


def _read_field(data: bytes, position: int, end: int) -> _Field:
    """Return number and wire type of a field, where its content begins and ends, and where its tag begins."""
    start = position
    tag, position = _read_varint(data, position, end)
    number, wire_type = tag >> 3, tag & 7
    if not 1 <= number <= _MAX_FIELD:
        raise ValueError(f"a frame is no valid protobuf message: field number {number}")
    begin = position
    if wire_type == _VARINT:
        _, position = _read_varint(data, position, end)
    elif wire_type == _LEN:
        size, begin = _read_varint(data, position, end)
        position = begin + size
    elif wire_type == _I64:
        position += 8
    elif wire_type == _I32:
        position += 4
    else:
        raise ValueError(f"a frame is no valid protobuf message: wire type {wire_type}")
    if position > end:
        raise ValueError("a frame is no valid protobuf message: it is truncated")
    return number, wire_type, begin, position, start


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("a frame is no valid protobuf message: it is truncated")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ValueError("a frame is no valid protobuf message: a number has more than 64 bits")
