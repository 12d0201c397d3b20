"""The daemon's socket: the service `Device` over gRPC, for programs of the same user on the same device."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
from edgenewton.v1 import device_pb2 as pb
from edgenewton.v1 import device_pb2_grpc

from edge_client.daemon.service import DeviceService
from edge_client.daemon.trainer_host import BusyError, JobError, TrainerDiedError
from edge_client.daemon.translation import (
    MAX_MESSAGE_BYTES,
    data_from_proto,
    evaluation_to_proto,
    result_to_proto,
    settings_from_text,
    step_to_proto,
    train_from_proto,
)
from edge_client.inference import ArtefactError
from edge_client.inference.store import StoreError
from edge_client.tasks import TaskError
from edge_client.training.work import TrainedStep

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
_LONGEST_PATH = 107
"""Bytes in the path of a Unix domain socket (unix(7))."""

Context = grpc.aio.ServicerContext[Any, Any]


class ControlServer:
    """Listens on the socket, which only the daemon's own user can open."""

    def __init__(self, device: DeviceService, path: Path) -> None:
        self._path = path
        self._server = grpc.aio.server(options=_OPTIONS)
        device_pb2_grpc.add_DeviceServicer_to_server(DeviceServicer(device), self._server)

    async def start(self) -> None:
        """Listen; a socket that a killed daemon left behind is replaced.

        Raises:
            OSError: the path cannot be listened on.

        """
        path = self._path.absolute()
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise OSError(f"the path of a socket may have {_LONGEST_PATH} bytes; {path} has more: set `socket`")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.is_socket():  # the model store is ours, so no other daemon listens on it
            path.unlink()
        elif path.exists():
            raise OSError(f"cannot listen on {path}: there is a file that is no socket")
        before = os.umask(0o177)  # owner only, from the first moment on
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {path}: {error}") from None
        finally:
            os.umask(before)
        await self._server.start()

    async def stop(self) -> None:
        """End what is on, and remove the socket."""
        await self._server.stop(grace=None)
        self._path.unlink(missing_ok=True)


class DeviceServicer(device_pb2_grpc.DeviceServicer):
    """Translates between the messages and the device."""

    def __init__(self, device: DeviceService) -> None:
        self._device = device

    async def Train(self, request: pb.TrainRequest, context: Context) -> AsyncIterator[pb.TrainEvent]:
        asked = train_from_proto(request)
        log.info("session %r at %s asks for %d steps", asked.session, asked.coordinator, asked.steps)
        try:
            async with aclosing(self._device.train(asked)) as messages:
                async for message in messages:
                    if isinstance(message, TrainedStep):
                        yield pb.TrainEvent(progress=step_to_proto(message))
                    else:
                        result = result_to_proto(message.report, message.weights, message.not_promoted)
                        yield pb.TrainEvent(result=result)
        except (BusyError, JobError) as error:
            await _refuse(context, error)

    async def Evaluate(self, request: pb.EvaluateRequest, context: Context) -> pb.EvaluateReply:
        try:
            result = await self._device.evaluate(data_from_proto(request.data), request.weights)
        except (BusyError, JobError) as error:
            await _refuse(context, error)
        return evaluation_to_proto(result)

    async def InitialWeights(self, request: pb.InitialWeightsRequest, context: Context) -> pb.InitialWeightsReply:
        try:
            weights = await self._device.initial_weights(settings_from_text(request.settings_json))
        except (BusyError, JobError) as error:
            await _refuse(context, error)
        return pb.InitialWeightsReply(weights=weights)

    async def Promote(self, request: pb.PromoteRequest, context: Context) -> pb.PromoteReply:
        try:
            return pb.PromoteReply(version=await self._device.promote_bytes(request.artefact))
        except (ArtefactError, TaskError, StoreError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("abort does not return") from None

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        return self._device.status()


async def _refuse(context: Context, error: BusyError | JobError) -> NoReturn:
    match error:
        case BusyError():
            code = grpc.StatusCode.ABORTED
        case TrainerDiedError():
            code = grpc.StatusCode.INTERNAL
        case _:
            code = grpc.StatusCode.FAILED_PRECONDITION
    await context.abort(code, str(error))
    raise AssertionError("abort does not return")
