"""The Open Inference Protocol v2 over gRPC, as `inference.GRPCInferenceService`; it only translates."""

import logging
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from edgenewton.common.clients import client_of_peer
from edgenewton.inference import open_inference_pb2 as pb
from edgenewton.inference import open_inference_pb2_grpc
from google.protobuf.message import DecodeError

from edge_client.inference import errors
from edge_client.inference.server.datatypes import check_elements, from_binary, from_values, to_binary
from edge_client.inference.server.parameters import check_schedule, unknown_parameter
from edge_client.inference.server.protocol import (
    Data,
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    RequestedOutput,
)
from edge_client.inference.server.service import InferenceService
from edge_client.inference.server.shared_timeout import SharedTimeout
from edge_client.inference.server.sizes import message_bytes
from edge_client.tasks import SampleError, TaskError

log = logging.getLogger(__name__)

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_RECEIVE_S = 20.0
"""Seconds that a request's message may take to come."""
LONGEST_ERROR = 1000
"""Characters; gRPC sends the sentence among a request's metadata, which have a limit."""

Context = grpc.aio.ServicerContext[Any, Any]
Parameters = Mapping[str, pb.InferParameter]

_CODES = {
    errors.BadRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooLargeError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownModelError: grpc.StatusCode.NOT_FOUND,
    errors.NotAllowedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
}

_REQUEST_PARAMETERS = ("timeout", "priority", "sequence_id", "sequence_start", "sequence_end")

_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where each datatype's typed contents are; FP16 has raw contents only."""


class InferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Translates between the protocol's messages and the service."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._receiving = SharedTimeout(_RECEIVE_S)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        try:
            self._service.serving(request.name, request.version)
        except errors.RequestError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._service.is_ready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        server = self._service.server_metadata()
        return pb.ServerMetadataResponse(name=server.name, version=server.version, extensions=server.extensions)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        try:
            model = self._service.model_metadata(request.name, request.version)
        except errors.RequestError as error:
            await abort(context, error)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=model.versions,
            platform=model.platform,
            inputs=[tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in model.inputs],
            outputs=[tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in model.outputs],
        )

    async def ModelInfer(  # type: ignore[override]  # see `add_to_server`
        self, messages: object, context: Context
    ) -> bytes:
        """Answer a request.

        To the client it is a call with one message. It is read here, as bytes: so that there is a time limit, and that
        memory is counted before anything is made of it. It is read from the context, since an iterator that is left
        before its end is a task more for the event loop.
        """
        service = self._service
        try:
            client = client_of_peer(context.peer())
            with service.metrics.request("grpc"), service.memory.request(client) as memory:
                content = await self._receive(context, client)
                memory.take(len(content), "the request")

                def read() -> tuple[InferRequest, bool]:
                    memory.take(message_bytes(content), "the request, whose tensors may come as raw_input_contents,")
                    message = parse(content)
                    return read_request(message), bool(message.raw_input_contents)

                request, is_raw = await service.aside(len(content), read)
                response = await service.infer(request, memory)
                return await service.aside(
                    response.text_bytes, lambda: write_response(response, is_raw=is_raw).SerializeToString()
                )
        except (SampleError, TaskError, errors.RequestError) as error:
            await abort(context, error)
        except Exception as error:
            log.exception("a request failed")
            await abort(context, errors.RequestError(f"the server failed: {type(error).__name__}: {error}"))

    async def _receive(self, context: Context, client: str) -> bytes:
        """Return the message of a call."""
        try:
            with self._receiving.limit():
                async with self._service.reception.place(client):
                    message = await context.read()
        except TimeoutError:
            raise errors.DeadlineError(f"the request did not come within {_RECEIVE_S:g} s") from None
        if not isinstance(message, bytes):
            raise errors.BadRequestError("the request has no message")
        return message


def add_to_server(
    servicer: InferenceServicer, server: grpc.aio.Server, more: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
) -> None:
    """Let a server answer the protocol's calls, and those of the extensions."""
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    handlers = {"ModelInfer": grpc.stream_unary_rpc_method_handler(servicer.ModelInfer), **more}
    # It takes the place of the one that was added above; grpc-stubs lack the method, which the generated code calls.
    server.add_registered_method_handlers(SERVICE_NAME, handlers)  # type: ignore[attr-defined]


def parse(content: bytes) -> pb.ModelInferRequest:
    """Return a message.

    Raises:
        BadRequestError: it is another one.

    """
    try:
        return pb.ModelInferRequest.FromString(content)
    except DecodeError:
        raise errors.BadRequestError("the message is not one of the Open Inference Protocol") from None


async def abort(context: Context, error: SampleError | TaskError | errors.RequestError) -> NoReturn:
    """Answer an error with its status code and its sentence."""
    if isinstance(error, SampleError):
        code = grpc.StatusCode.INVALID_ARGUMENT
    elif isinstance(error, TaskError):
        code = grpc.StatusCode.INTERNAL
    else:
        code = _CODES.get(type(error), grpc.StatusCode.INTERNAL)
    await context.abort(code, str(error)[:LONGEST_ERROR])
    raise AssertionError("abort does not return")


def read_request(message: pb.ModelInferRequest) -> InferRequest:
    """Return a message as a request.

    Raises:
        BadRequestError: it is not the protocol's.

    """
    raws = message.raw_input_contents
    if raws and len(raws) != len(message.inputs):
        raise errors.BadRequestError(f"the request has {len(message.inputs)} inputs and {len(raws)} raw contents")
    inputs = []
    for place, tensor in enumerate(message.inputs):
        if tensor.parameters:
            raise unknown_parameter(min(tensor.parameters), ())
        shape = tuple(tensor.shape)
        data = from_binary(tensor.name, tensor.datatype, shape, raws[place]) if raws else _read_contents(tensor, shape)
        inputs.append(InputTensor(tensor.name, tensor.datatype, shape, data))
    outputs = tuple(RequestedOutput(output.name, _class_count(output.parameters)) for output in message.outputs)
    timeout_us = _timeout_us(message.parameters) if message.parameters else None
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        inputs=tuple(inputs),
        outputs=outputs,
        id=message.id,
        timeout_s=None if timeout_us is None else timeout_us / 1e6,
    )


def write_response(response: InferResponse, *, is_raw: bool) -> pb.ModelInferResponse:
    """Return a response as a message, with raw or with typed contents."""
    message = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if is_raw:
            message.raw_output_contents.append(to_binary(output.datatype, output.data))
        else:
            getattr(tensor.contents, _FIELDS[output.datatype]).extend(_values(output))
    return message


def _read_contents(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> Data:
    if tensor.datatype not in _FIELDS:
        # Says which datatypes there are, or that this one has no typed contents.
        from_values(tensor.name, tensor.datatype, shape, [])
        raise errors.BadRequestError(f"input {tensor.name!r}: {tensor.datatype} goes into raw_input_contents")
    field = _FIELDS[tensor.datatype]
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if any(name != field for name in filled):
        raise errors.BadRequestError(f"input {tensor.name!r}: {tensor.datatype} goes into {field}, not {filled[0]}")
    values = getattr(tensor.contents, field)
    if tensor.datatype != "BYTES":
        return from_values(tensor.name, tensor.datatype, shape, values)
    return check_elements(tensor.name, shape, list(values))


def _values(output: OutputTensor) -> list[object]:
    return list(output.data) if isinstance(output.data, list) else output.data.ravel().tolist()


def _class_count(parameters: Parameters) -> int:
    for name in parameters:
        if name != "classification":
            raise unknown_parameter(name, ("classification",))
    return _integer(parameters, "classification") or 0


def _timeout_us(parameters: Parameters) -> int | None:
    """Return the deadline among a request's parameters, in microseconds, once the others are checked."""
    for name in parameters:
        if name not in _REQUEST_PARAMETERS:
            raise unknown_parameter(name, _REQUEST_PARAMETERS)
    check_schedule(
        priority=_integer(parameters, "priority") or 0,
        sequence_id=_sequence_id(parameters),
        sequence_start=_flag(parameters, "sequence_start"),
        sequence_end=_flag(parameters, "sequence_end"),
    )
    return _integer(parameters, "timeout")


def _sequence_id(parameters: Parameters) -> int | str:
    if "sequence_id" in parameters and parameters["sequence_id"].WhichOneof("parameter_choice") == "string_param":
        return parameters["sequence_id"].string_param
    return _integer(parameters, "sequence_id") or 0


def _flag(parameters: Parameters, name: str) -> bool:
    if name not in parameters:
        return False
    if parameters[name].WhichOneof("parameter_choice") != "bool_param":
        raise errors.BadRequestError(f"parameter {name!r} must be true or false")
    return parameters[name].bool_param


def _integer(parameters: Parameters, name: str) -> int | None:
    if name not in parameters:
        return None
    choice = parameters[name].WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param"):
        raise errors.BadRequestError(f"parameter {name!r} must be an integer")
    return int(getattr(parameters[name], choice))
