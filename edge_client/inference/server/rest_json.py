"""The JSON of the Open Inference Protocol v2, with the binary tensor extension: bytes to requests and back.

With the extension, the body begins with the JSON, whose length a header tells, and the tensors' bytes follow in the
order of the inputs; each tells its `binary_data_size`.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError
from pydantic_core import from_json

from edge_client.inference.errors import BadRequestError
from edge_client.inference.server.datatypes import check_elements, from_binary, from_values, to_binary
from edge_client.inference.server.memory import RequestMemory
from edge_client.inference.server.parameters import check_schedule, unknown_parameter
from edge_client.inference.server.protocol import (
    Data,
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    RequestedOutput,
)
from edge_client.inference.server.sizes import json_bytes

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"

_MOST_DIGITS = 18
"""Of a length; Python itself refuses to read thousands."""
_MOST_NAMES = 64
"""In one object; a request needs fewer."""

_MOST_INPUTS = 8
"""And outputs."""

Count = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]
Name = Annotated[str, Field(max_length=256)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TensorParameters(_Message):
    """Parameters of an input."""

    binary_data_size: Count | None = None
    """Bytes of the tensor behind the JSON; there are no `data` then."""
    content_type: Literal["base64"] | None = None
    """How texts in `data` of BYTES are to be read; plain UTF-8 unless given."""


class InputMessage(_Message):
    """An input of a request."""

    name: Name
    datatype: Name
    shape: Annotated[list[Count], Field(max_length=32)]
    data: list[Any] | None = None
    """Elements, flat or nested; texts for BYTES."""
    parameters: TensorParameters = Field(default_factory=TensorParameters)


class OutputParameters(_Message):
    """Parameters of a requested output."""

    binary_data: StrictBool | None = None
    """Whether it comes as bytes behind the JSON."""
    classification: Count = 0
    """How many classes to tell, as texts, instead of the numbers."""


class OutputMessage(_Message):
    """An output that is requested."""

    name: Name
    parameters: OutputParameters = Field(default_factory=OutputParameters)


class RequestParameters(_Message):
    """Parameters of a request."""

    binary_data_output: StrictBool = False
    """Whether outputs come as bytes behind the JSON, unless they say otherwise."""
    timeout: Count | None = None
    """Microseconds that the answer may take."""
    priority: Count = 0
    """0: requests are answered in the order in which they come."""
    sequence_id: Count | Name = 0
    """0, or an empty text: every request stands for itself."""
    sequence_start: StrictBool = False
    sequence_end: StrictBool = False


class RequestMessage(_Message):
    """A request for inference."""

    inputs: Annotated[list[InputMessage], Field(max_length=_MOST_INPUTS)]
    outputs: Annotated[list[OutputMessage], Field(max_length=_MOST_INPUTS)] = []
    id: Name = ""
    model_name: Name | None = None
    """That of the address, if it is given; so is the next one."""
    model_version: Name | None = None
    parameters: RequestParameters = Field(default_factory=RequestParameters)


@dataclass(frozen=True)
class ParsedRequest:
    """A request, and which of its outputs are to come as bytes."""

    request: InferRequest
    binary_outputs: Mapping[str, bool]
    is_binary_by_default: bool

    def is_binary(self, output: str) -> bool:
        """Return whether an output is to come as bytes."""
        return self.binary_outputs.get(output, self.is_binary_by_default)


def read_request(
    model: str, version: str, body: bytes, json_length: str | None, memory: RequestMemory
) -> ParsedRequest:
    """Return a body as a request.

    Args:
        model: from the address.
        version: from the address; empty for whichever serves.
        body: what came.
        json_length: value of `JSON_LENGTH_HEADER`, if the client sent it.
        memory: counts what is made of the body.

    Raises:
        BadRequestError: it is not the protocol's.
        TooLargeError, OverloadedError: it takes too much memory.

    """
    length = len(body)
    if json_length is not None:
        is_number = json_length.isdecimal() and len(json_length) <= _MOST_DIGITS
        if not is_number or int(json_length) > len(body):
            raise BadRequestError(f"{JSON_LENGTH_HEADER} is {json_length[:40]!r}; the body has {len(body)} bytes")
        length = int(json_length)
    # Binary tensors are copied once; numbers in JSON become Python's first, and take many times their text.
    memory.take(json_bytes(body, length) + len(body) - length, "the request, whose tensors may come as binary data,")
    try:
        message = RequestMessage.model_validate(from_text(body[:length]))
    except ValidationError as error:
        raise BadRequestError("; ".join(map(describe, error.errors()[:8]))) from None
    except ValueError:
        raise BadRequestError("the body is not JSON of the Open Inference Protocol") from None
    given = message.parameters
    check_schedule(
        priority=given.priority,
        sequence_id=given.sequence_id,
        sequence_start=given.sequence_start,
        sequence_end=given.sequence_end,
    )
    for named, addressed in ((message.model_name, model), (message.model_version, version)):
        if named and addressed and named != addressed:
            raise BadRequestError(f"the body is for {named!r}, and the address for {addressed!r}")
    binary, inputs = memoryview(body)[length:], []
    for tensor in message.inputs:
        size = tensor.parameters.binary_data_size
        if size is not None and size > len(binary):
            raise BadRequestError(f"input {tensor.name!r} has {size} bytes of binary data, of which {len(binary)} came")
        data = (
            _read_values(tensor)
            if size is None
            else from_binary(tensor.name, tensor.datatype, tensor.shape, binary[:size])
        )
        binary = binary[size or 0 :]
        inputs.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    if len(binary):
        raise BadRequestError(f"{len(binary)} bytes of binary data belong to no input")
    timeout = given.timeout
    request = InferRequest(
        model=model,
        version=version or message.model_version or "",
        inputs=tuple(inputs),
        outputs=tuple(RequestedOutput(output.name, output.parameters.classification) for output in message.outputs),
        id=message.id,
        timeout_s=None if timeout is None else timeout / 1e6,
    )
    binary_outputs = {
        output.name: output.parameters.binary_data
        for output in message.outputs
        if output.parameters.binary_data is not None
    }
    return ParsedRequest(request, binary_outputs, given.binary_data_output)


def from_text(text: bytes) -> Any:
    """Return what a request says in JSON.

    Raises:
        ValueError: it is not JSON.
        BadRequestError: an object of it has more names than a request needs.

    """
    value = from_json(text)
    _check_names(value)
    return value


def _check_names(value: object) -> None:
    # Of each name that is too many, pydantic would tell in some hundreds of bytes.
    if isinstance(value, dict):
        if len(value) > _MOST_NAMES:
            raise BadRequestError(f"an object of the request has {len(value)} names; at most {_MOST_NAMES} are read")
        for part in value.values():
            _check_names(part)
    elif isinstance(value, list):
        for part in value[: _MOST_INPUTS + 1]:
            _check_names(part)


def write_response(response: InferResponse, parsed: ParsedRequest) -> tuple[bytes, int | None]:
    """Return a response as a body, and the length of its JSON if tensors follow behind it."""
    outputs, binary = [], []
    for output in response.outputs:
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if parsed.is_binary(output.name):
            binary.append(to_binary(output.datatype, output.data))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = _values(output)
        outputs.append(entry)
    message = {"model_name": response.model, "model_version": response.version, "outputs": outputs}
    if response.id:
        message["id"] = response.id
    text = json.dumps(message, allow_nan=False).encode()
    return b"".join([text, *binary]), len(text) if binary else None


def _read_values(tensor: InputMessage) -> Data:
    if tensor.data is None:
        raise BadRequestError(f"input {tensor.name!r} has neither data nor binary_data_size")
    if tensor.datatype != "BYTES":
        return from_values(tensor.name, tensor.datatype, tensor.shape, tensor.data)
    elements = []
    for element in _flatten(tensor.data):
        if not isinstance(element, str):
            raise BadRequestError(f"input {tensor.name!r}: BYTES are texts in JSON, not {type(element).__name__}")
        if tensor.parameters.content_type == "base64":
            try:
                elements.append(base64.b64decode(element, validate=True))
            except (binascii.Error, ValueError):
                raise BadRequestError(f"input {tensor.name!r}: its content_type is base64, its data are not") from None
        else:
            elements.append(element.encode())
    return check_elements(tensor.name, tensor.shape, elements)


def _flatten(values: list[Any]) -> list[Any]:
    return [leaf for value in values for leaf in (_flatten(value) if isinstance(value, list) else [value])]


def _values(output: OutputTensor) -> list[Any]:
    if isinstance(output.data, list):
        return [element.decode() for element in output.data]
    values: list[Any] = output.data.ravel().tolist()
    return values


def describe(problem: Any) -> str:
    """Return what pydantic says of a message as one sentence."""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        return f"{place[:200] or 'the body'}: {problem['msg']}"
    *above, name = map(str, problem["loc"])
    if "parameters" in above:
        of = f"{'.'.join(above[:-1])}: " if above[:-1] else ""
        return f"{of}{unknown_parameter(name, _KNOWN.get(above[0], ()))}"
    return f"{place[:200]}: it is no part of a request; leave it out"


_KNOWN = {
    "parameters": tuple(RequestParameters.model_fields),
    "inputs": tuple(TensorParameters.model_fields),
    "outputs": tuple(OutputParameters.model_fields),
}
"""Parameters of a request, by the place where they are."""
