"""What requests and answers take in memory, told from their bytes and shapes before anything is made of them."""

from collections.abc import Sequence

from edge_client.inference.errors import BadRequestError
from edge_client.inference.server.protocol import RequestedOutput

SMALL = 64 << 10
"""Bytes that are parsed, or written, on the event loop; what is larger goes to a thread."""
MAX_FIELDS = 64
"""Fields at the top of a gRPC message that is not small."""

# Upper bounds of what was measured with CPython 3.11 and pydantic-core. A list and an object count several times what
# they take, because Python's collector of garbage needs time for them in which it lets nobody else run.
_JSON_VALUE, _JSON_LIST, _JSON_OBJECT = 48, 256, 512
_ANSWERED_NUMBER, _ANSWERED_TEXT = 100, 200
_TYPED, _RAW = 32, 3
"""Bytes that protobuf, Python and NumPy make of a byte of typed contents, and of raw ones."""
_RAW_CONTENTS_FIELD = 7


def json_bytes(body: bytes, length: int) -> int:
    """Return how much memory the JSON in the first `length` bytes of a body may need to be read.

    Texts may hold commas and brackets too, and then need less.
    """
    if length <= SMALL:
        return 64 * length
    commas, lists, objects = (body.count(mark, 0, length) for mark in (b",", b"[", b"{"))
    # A value of one character is an object that Python has already; any other has at least three, and a comma.
    values = min(_JSON_VALUE * commas, 8 * length + 16 * commas)
    return length + values + _JSON_LIST * lists + _JSON_OBJECT * objects


def answer_bytes(outputs: Sequence[RequestedOutput], samples: int, labels: Sequence[str], probabilities: str) -> int:
    """Return how much memory the answer to a request may need.

    Args:
        outputs: that are asked for.
        samples: of the request.
        labels: of the model.
        probabilities: name of the output with a number for each label; another one has a text for each sample.

    """
    longest = max(map(len, labels), default=0)
    total = 0
    for output in outputs:
        if output.name != probabilities:
            total += samples * (_ANSWERED_TEXT + 8 * longest)
        elif output.class_count:
            total += samples * min(output.class_count, len(labels)) * (_ANSWERED_TEXT + 8 * longest)
        else:
            total += samples * len(labels) * _ANSWERED_NUMBER
    return total


def message_bytes(content: bytes) -> int:
    """Return how much memory a gRPC message, a `ModelInferRequest`, may need to be read.

    Raises:
        BadRequestError: it has more fields than a request needs, or ends within one.

    """
    if len(content) <= SMALL:
        return (_TYPED + 8) * len(content)
    raw = place = fields = 0
    while place < len(content):
        fields += 1
        if fields > MAX_FIELDS:
            raise BadRequestError(f"the request has more than {MAX_FIELDS} inputs, outputs, contents and parameters")
        tag, place = _varint(content, place)
        match tag & 7:
            case 0:
                _, place = _varint(content, place)
            case 1:
                place += 8
            case 2:
                size, place = _varint(content, place)
                place += size
                raw += size if tag >> 3 == _RAW_CONTENTS_FIELD else 0
            case 5:
                place += 4
            case _:
                raise BadRequestError("the message is not one of the Open Inference Protocol")
    return _TYPED * max(0, len(content) - raw) + _RAW * raw


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return a number of variable length (protobuf.dev/programming-guides/encoding), and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            break
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise BadRequestError("the message is not one of the Open Inference Protocol")
