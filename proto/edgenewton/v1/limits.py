"""What a message's fields may hold, as its definition says (`limits.proto`): checked before the message is parsed.

The generated parser takes whatever fits into its types, and memory in proportion to it. Here the wire format is read
first, field by field, up to the first one that is out of its range; nothing is kept of it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, NoReturn, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from edgenewton.v1 import limits_pb2 as pb
from edgenewton.v1.wire import I32, I64, LEN, VARINT, WireError, read_varint, skip

MAX_DEPTH = 8
"""Messages within messages."""
MAX_SHOWN = 64
"""Characters of a field's value that an error shows."""

_PEEKED = 16
"""So many fields are looked at to say whose message it is."""

_F = FieldDescriptor
_WIRE_TYPES = {
    _F.TYPE_DOUBLE: I64,
    _F.TYPE_FLOAT: I32,
    _F.TYPE_FIXED64: I64,
    _F.TYPE_FIXED32: I32,
    _F.TYPE_STRING: LEN,
    _F.TYPE_BYTES: LEN,
    _F.TYPE_MESSAGE: LEN,
}
_FORMATS = {_F.TYPE_DOUBLE: "<d", _F.TYPE_FLOAT: "<f", _F.TYPE_FIXED64: "<Q", _F.TYPE_FIXED32: "<I"}
_M = TypeVar("_M", bound=Message)


class LimitError(ValueError):
    """A message is none, or a field of it is out of its range; the text names the field, the value and the range."""


@dataclass(slots=True)
class _Rule:
    """What one field may hold."""

    name: str
    """With that of the messages that it is in."""
    wire_type: int
    count: int
    """How often it may come in one message."""
    is_packed: bool = False
    is_never: bool = False
    low: float = 0
    high: float = 0
    is_any: bool = False
    size: int = 0
    """Most bytes of a text."""
    format: struct.Struct | None = None
    fields: "dict[int, _Rule] | None" = None
    """By their tags, of the message in it."""


@dataclass(slots=True)
class _Scan:
    data: bytes
    left: int
    """Fields that it may still have."""


class Limits(Generic[_M]):
    """The limits of one message, of those that come in calls.

    Args:
        message: its class.
        without: names of fields that are taken out before.

    """

    def __init__(self, message: type[_M], without: tuple[str, ...] = ()) -> None:
        descriptor: Descriptor = message.DESCRIPTOR  # type: ignore[assignment]  # protobuf's own implementation of it
        size: pb.Size = _option(descriptor, pb.size)
        self._message = message
        self._name = descriptor.name
        self.bytes: int = size.bytes
        self._count: int = size.fields
        self._rules = {tag: rule for tag, rule in _rules(descriptor).items() if rule.name not in without}
        self._cuts = {f.name: _option(f, pb.limit).cut for f in descriptor.fields}

    def check(self, data: bytes) -> None:
        """Check a message as it came.

        Raises:
            LimitError: it is no message of protobuf, or a field is out of its range.

        """
        if len(data) > self.bytes:
            raise LimitError(f"a {self._name} of {len(data)} bytes came; at most {self.bytes} are accepted")
        try:
            _scan(_Scan(data, self._count), 0, len(data), self._rules, 0)
        except WireError as error:
            raise LimitError(f"a {self._name} {error}") from None

    def parse(self, data: bytes) -> _M:
        """Return a message that came; texts that only people read are cut, and made one line of printable characters.

        Raises:
            LimitError: it is no message of protobuf, or a field is out of its range.

        """
        self.check(data)
        try:
            message = self._message.FromString(data)
        except DecodeError:
            raise LimitError(f"a {self._name} is no valid protobuf message") from None
        for name, length in self._cuts.items():
            if length and getattr(message, name):
                setattr(message, name, _readable(getattr(message, name)[:length]))
        return message


def largest(message: type[Message], field: str) -> float:
    """Return the largest number that a field of a message may hold."""
    found: float = _option(message.DESCRIPTOR.fields_by_name[field], pb.limit).max
    return found


def peek_number(data: bytes, number: int) -> int | None:
    """Return an integer field of a message that need not be whole, if it comes among the first."""
    found = _peek(data, number << 3 | VARINT)
    return None if found is None else read_varint(data, found[0], len(data))[0]


def peek_text(data: bytes, number: int, length: int) -> str:
    """Return a text of a message that need not be whole, cut to a length; nothing if it is not among the first."""
    found = _peek(data, number << 3 | LEN)
    return "" if found is None else data[found[0] : found[1]][: 4 * length].decode(errors="replace")[:length]


def _peek(data: bytes, wanted: int) -> tuple[int, int] | None:
    """Return where the content of a field is, by its tag."""
    position = 0
    try:
        for _ in range(_PEEKED):
            tag, position = read_varint(data, position, len(data))
            begin, position = skip(data, tag, position, len(data))
            if tag == wanted:
                return begin, position
    except WireError:
        pass  # it is refused in any case
    return None


def _scan(scan: _Scan, position: int, end: int, rules: Mapping[int, _Rule], depth: int) -> None:
    """Look at the fields between two positions."""
    if depth > MAX_DEPTH:
        raise LimitError(f"its messages are more than {MAX_DEPTH} deep in each other")
    data = scan.data
    counts: dict[int, int] = {}
    while position < end:
        scan.left -= 1
        if scan.left < 0:
            raise LimitError("the message has too many fields")
        tag = data[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = read_varint(data, position, end)
        rule = rules.get(tag)
        if rule is None:  # of another release, for the generated code to keep or to drop
            _, position = skip(data, tag, position, end)
            continue
        seen = counts[tag] = counts.get(tag, 0) + 1
        if seen > rule.count or rule.is_never or (seen > 1 and rule.is_packed):
            _refuse_field(rule)
        if rule.wire_type == VARINT:
            value, position = read_varint(data, position, end)
            if not rule.low <= value <= rule.high:
                _refuse_value(rule, value)
            continue
        begin, position = skip(data, tag, position, end)
        if rule.is_packed:
            _scan_packed(data, begin, position, rule)
        elif rule.format is not None:
            (number,) = rule.format.unpack_from(data, begin)
            if not (rule.is_any or rule.low <= number <= rule.high):
                _refuse_value(rule, number)
        elif rule.fields is not None:
            _scan(scan, begin, position, rule.fields, depth + 1)
        elif position - begin > rule.size:
            raise LimitError(f"{rule.name} has {position - begin} bytes; at most {rule.size} are accepted")


def _scan_packed(data: bytes, position: int, end: int, rule: _Rule) -> None:
    """Look at a list of numbers in one field."""
    count = 0
    while position < end:
        count += 1
        if count > rule.count:
            raise LimitError(f"{rule.name} has more than {rule.count} numbers")
        value: float
        if rule.format is None:
            value, position = read_varint(data, position, end)
        else:
            if position + rule.format.size > end:
                raise WireError("is no valid protobuf message: it is truncated")
            (value,) = rule.format.unpack_from(data, position)
            position += rule.format.size
        if not (rule.is_any or rule.low <= value <= rule.high):
            _refuse_value(rule, value)


def _readable(text: str) -> str:
    """Return a text that draws nothing else on a terminal, and begins no line in a log."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join([c if c.isprintable() else "\ufffd" for c in line])


def _refuse_field(rule: _Rule) -> NoReturn:
    if rule.is_never:
        raise LimitError(f"{rule.name} is not for devices to send")
    raise LimitError(f"{rule.name} comes more than {rule.count if not rule.is_packed else 1} times")


def _refuse_value(rule: _Rule, value: float) -> NoReturn:
    shown = str(value)[:MAX_SHOWN]
    raise LimitError(f"{rule.name} is {shown}; it may be {_number(rule.low)} to {_number(rule.high)}")


def _option(descriptor: Descriptor | FieldDescriptor, extension: Any) -> Any:
    return descriptor.GetOptions().Extensions[extension]


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def _rules(
    descriptor: Descriptor, prefix: str = "", known: Mapping[str, dict[int, _Rule]] | None = None
) -> dict[int, _Rule]:
    """Return the rules of a message's fields by their tags: number and wire type.

    Args:
        descriptor: of the message.
        prefix: of the fields' names.
        known: the rules of the messages that it is in, to which one within its own kind comes back.

    Raises:
        TypeError: a field has no limit.

    """
    rules: dict[int, _Rule] = {}
    known = {**(known or {}), descriptor.full_name: rules}
    for each in descriptor.fields:
        rule = _rule(each, prefix + each.name, _option(each, pb.limit), known)
        rules[each.number << 3 | rule.wire_type] = rule
        if each.is_repeated and rule.wire_type != LEN:  # numbers come in one field, or each in its own
            rules[each.number << 3 | LEN] = replace(rule, wire_type=LEN, is_packed=True)
    return rules


def _rule(
    each: FieldDescriptor, name: str, limit: pb.Limit, known: Mapping[str, dict[int, _Rule]], count: int = 0
) -> _Rule:
    """Return the rule of one field, with a limit that may be that of the map that it is in."""
    rule = _Rule(name, _WIRE_TYPES.get(each.type, VARINT), count or (limit.count if each.is_repeated else 1))
    message = each.message_type
    if limit.never:
        rule.is_never = True
    elif message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_number[1], message.fields_by_number[2]
        rules = {
            key.number: _rule(key, f"{name}.key", pb.Limit(bytes=limit.key_bytes), known, 1),
            value.number: _rule(value, f"{name}.value", limit, known, 1),
        }
        rule.fields = {number << 3 | each.wire_type: each for number, each in rules.items()}
    elif message is not None:
        rule.fields = known.get(message.full_name) or _rules(message, f"{name}.", known)
    elif each.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        rule.size = limit.bytes
    elif each.type == FieldDescriptor.TYPE_BOOL:
        rule.high = 1
    else:
        rule.low, rule.high, rule.is_any = limit.min, limit.max, limit.any
        rule.format = struct.Struct(_FORMATS[each.type]) if each.type in _FORMATS else None
    if not (rule.count and (rule.is_never or rule.fields is not None or rule.is_any or rule.high or rule.size)):
        raise TypeError(f"{each.containing_type.full_name}.{each.name} has no limit")
    return rule
