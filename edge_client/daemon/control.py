"""The daemon's socket: the service `Device` over gRPC, for programs of the same user on the same device."""

import json
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from edgenewton.common.evaluation import Evaluation
from edgenewton.v1 import device_pb2 as pb
from edgenewton.v1 import device_pb2_grpc

from edge_client.daemon.messages import (
    EvaluateMessage,
    InitialWeightsMessage,
    Trained,
    TrainMessage,
)
from edge_client.daemon.trainer_host import BusyError, JobError, TrainerDiedError
from edge_client.inference import ArtefactError
from edge_client.inference.store import StoreError
from edge_client.tasks import TaskError
from edge_client.training.work import DataRequest, TrainedStep, TrainRequest

if TYPE_CHECKING:
    from edge_client.daemon.daemon import Daemon

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = (1 << 31) - 1
"""A whole model goes in one message; Protocol Buffers end here."""
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
_LONGEST_PATH = 107
"""Bytes in the path of a Unix domain socket (unix(7))."""

Context = grpc.aio.ServicerContext[Any, Any]


class ControlServer:
    """Listens on the socket, which only the daemon's own user can open."""

    def __init__(self, daemon: "Daemon", path: Path) -> None:
        self._path = path
        self._server = grpc.aio.server(options=_OPTIONS)
        device_pb2_grpc.add_DeviceServicer_to_server(DeviceServicer(daemon), self._server)

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
    """Translates between the messages and the daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon

    async def Train(self, request: pb.TrainRequest, context: Context) -> AsyncIterator[pb.TrainEvent]:
        asked = TrainRequest(
            data=_data(request.data),
            coordinator=request.coordinator,
            session=request.session,
            device=request.device,
            first_step=request.first_step,
            steps=request.steps,
            weights=request.weights,
        )
        job = TrainMessage(asked, self._daemon.path_to_compare())
        log.info("session %r at %s asks for %d steps", asked.session, asked.coordinator, asked.steps)
        try:
            async with aclosing(self._daemon.run_job(job)) as messages:
                async for message in messages:
                    if isinstance(message, TrainedStep):
                        yield pb.TrainEvent(
                            progress=pb.TrainProgress(
                                step=message.step,
                                loss=message.loss,
                                session_loss=message.session_loss,
                                devices=message.devices,
                            )
                        )
                    elif isinstance(message, Trained):
                        not_promoted = await self._daemon.take_trained(message)
                        result = pb.TrainResult(
                            report_json=json.dumps(asdict(message.report)),
                            weights=message.weights,
                            not_promoted=not_promoted,
                        )
                        yield pb.TrainEvent(result=result)
        except (BusyError, JobError) as error:
            await _refuse(context, error)

    async def Evaluate(self, request: pb.EvaluateRequest, context: Context) -> pb.EvaluateReply:
        result = await self._result(EvaluateMessage(_data(request.data), request.weights), context)
        assert isinstance(result, Evaluation)
        return pb.EvaluateReply(correct=result.correct, samples=result.samples, loss=result.loss)

    async def InitialWeights(self, request: pb.InitialWeightsRequest, context: Context) -> pb.InitialWeightsReply:
        message = InitialWeightsMessage(DataRequest(_settings(request.settings_json)))
        result = await self._result(message, context)
        assert isinstance(result, bytes)
        return pb.InitialWeightsReply(weights=result)

    async def Promote(self, request: pb.PromoteRequest, context: Context) -> pb.PromoteReply:
        try:
            version = await self._daemon.promote_bytes(request.artefact)
        except (ArtefactError, TaskError, StoreError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.PromoteReply(version=version.version)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        daemon = self._daemon
        config, store, training = daemon.config, daemon.store, daemon.training
        model = pb.ModelStatus(name=config.model.name, engine=config.model.engine, versions=store.versions())
        serving = daemon.service.batcher.serving
        if serving is not None:
            info = serving.recognizer.info
            model.version, model.task, model.step, model.digest = serving.version, info.task, info.step, info.digest
            if store.serving is not None and store.serving.accuracy is not None:
                model.accuracy = store.serving.accuracy
        return pb.StatusReply(
            software=metadata.version("edgenewton"),
            pid=os.getpid(),
            uptime_s=time.monotonic() - daemon.began_at,
            grpc_address=f"{config.server.host}:{daemon.servers.grpc_port}",
            rest_address=f"{config.server.host}:{daemon.servers.rest_port}",
            model=model,
            training=pb.TrainingStatus(
                is_training=bool(training.session),
                session=training.session,
                step=training.step,
                loss=training.loss,
                last=training.last,
            ),
            waiting_samples=len(daemon.service.batcher.queue),
        )

    async def _result(self, job: EvaluateMessage | InitialWeightsMessage, context: Context) -> object:
        try:
            async with aclosing(self._daemon.run_job(job)) as messages:
                return [message async for message in messages][-1]
        except (BusyError, JobError) as error:
            await _refuse(context, error)


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


def _data(message: pb.DeviceData) -> DataRequest:
    return DataRequest(_settings(message.settings_json), message.index, message.count)


def _settings(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    # What is no object has no setting that could be named; the process that trains names all else.
    return values if isinstance(values, dict) else {"settings_json": text}
