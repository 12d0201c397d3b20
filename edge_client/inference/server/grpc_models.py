"""Over gRPC: a model's configuration and statistics, and the model repository, as Triton's clients ask for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from edgenewton.common.clients import client_of_peer
from edgenewton.common.reception import Reception
from edgenewton.inference import open_inference_pb2 as pb
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from edge_client.inference import errors
from edge_client.inference.server.grpc_server import Context, abort
from edge_client.inference.server.model_config import model_config, model_statistics
from edge_client.inference.server.model_control import ModelControl
from edge_client.inference.server.service import InferenceService
from edge_client.inference.server.sizes import SMALL

_RECEIVE_S = 20.0
"""Seconds that a request may take to come."""

MessageT = TypeVar("MessageT", bound=Message)
ControlMessage = pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest


class ModelsServicer:
    """Translates between the extensions' messages and the service.

    Args:
        service: answers for the models.
        control: loads and unloads them.

    """

    def __init__(self, service: InferenceService, control: ModelControl) -> None:
        self._service = service
        self._control = control

    def handlers(self) -> Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]:
        """Return the calls by their names."""
        reception = self._service.reception
        return {
            "ModelConfig": _small(pb.ModelConfigRequest, self._config, reception),
            "ModelStatistics": _small(pb.ModelStatisticsRequest, self._statistics, reception),
            "RepositoryIndex": _small(pb.RepositoryIndexRequest, self._index, reception),
            "RepositoryModelLoad": _small(pb.RepositoryModelLoadRequest, self._load, reception),
            "RepositoryModelUnload": _small(pb.RepositoryModelUnloadRequest, self._unload, reception),
        }

    async def _config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        config = model_config(self._service, request.name, request.version)
        return ParseDict({"config": config}, pb.ModelConfigResponse())

    async def _statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        return ParseDict(model_statistics(self._service, request.name, request.version), pb.ModelStatisticsResponse())

    async def _index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for entry in await self._control.index(is_ready=request.ready):
            response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    async def _load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        await self._control.load(request.model_name, _parameters(request))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        await self._control.unload(request.model_name, _parameters(request))
        return pb.RepositoryModelUnloadResponse()


def _small(
    kind: type[MessageT], answer: Callable[[MessageT], Awaitable[Message]], reception: Reception
) -> "grpc.RpcMethodHandler[Any, Any]":
    """Return a call whose request is small: it is read as bytes, so that a large one is never parsed."""

    async def call(messages: AsyncIterator[bytes], context: Context) -> bytes:
        try:
            content = await _receive(messages, reception, client_of_peer(context.peer()))
            if len(content) > SMALL:
                raise errors.BadRequestError(f"the request has {len(content)} bytes; {SMALL} are the limit")
            try:
                request = kind.FromString(content)
            except DecodeError:
                raise errors.BadRequestError("the message is none of Triton's protocol") from None
            return (await answer(request)).SerializeToString()
        except errors.RequestError as error:
            await abort(context, error)

    return grpc.stream_unary_rpc_method_handler(call)


async def _receive(messages: AsyncIterator[bytes], reception: Reception, client: str) -> bytes:
    try:
        async with asyncio.timeout(_RECEIVE_S), reception.place(client):
            return await anext(messages)
    except StopAsyncIteration:
        raise errors.BadRequestError("the request has no message") from None
    except TimeoutError:
        raise errors.DeadlineError(f"the request did not come within {_RECEIVE_S:g} s") from None


def _check_repository(name: str) -> None:
    if name:
        raise errors.BadRequestError(f"repository {name[:80]!r} is unknown: there is one; leave its name out")


def _parameters(request: ControlMessage) -> dict[str, object]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param")
        for name, value in request.parameters.items()
    }
