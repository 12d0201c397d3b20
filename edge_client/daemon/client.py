"""Asks the daemon of this device, over its socket; see `Worker`. Weights are in the format of safetensors."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
from edgenewton.common.backoff import backoff
from edgenewton.common.evaluation import Evaluation
from edgenewton.v1 import device_pb2 as pb
from edgenewton.v1 import device_pb2_grpc

from edge_client.daemon.translation import (
    MAX_MESSAGE_BYTES,
    data_to_proto,
    evaluation_from_proto,
    result_from_proto,
    settings_to_text,
    step_from_proto,
    train_to_proto,
)
from edge_client.training.work import DataRequest, TrainedStep, TrainingReport, TrainRequest, WorkError

log = logging.getLogger(__name__)

_CONNECT_DEADLINE_S = 5.0
_DEADLINE_S = 300.0
"""For everything but training, whose length the coordinator's deadlines bound."""


class DaemonError(WorkError):
    """The daemon does not answer, or refuses; the text says why."""


class DaemonUnavailableError(DaemonError):
    """The daemon or its process that trains has died, or is busy; it may be asked again."""


class DaemonClient:
    """A connection to the daemon.

    Args:
        socket: where it listens.
        return_deadline_s: seconds in which a training must begin, or go on after the daemon has died; 0 for at once.

    Raises:
        DaemonError: no daemon answers there.

    """

    def __init__(self, socket: Path, return_deadline_s: float = 0.0) -> None:
        self._return_deadline_s = return_deadline_s
        size = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(f"unix:{socket.absolute()}", options=size)
        self._stub = device_pb2_grpc.DeviceStub(self._channel)
        try:
            grpc.channel_ready_future(self._channel).result(_CONNECT_DEADLINE_S)
        except grpc.FutureTimeoutError:
            self._channel.close()
            raise DaemonError(
                f"no daemon answers at {socket}. Is the path right, `edge-client daemon` running, and its user yours?"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def train(
        self, request: TrainRequest, on_step: Callable[[TrainedStep], None] | None = None
    ) -> tuple[TrainingReport, bytes]:
        """Let the daemon train; return its report and the weights.

        A daemon that dies meanwhile is asked again once it is back, and goes on from the state that it saved.

        Raises:
            DaemonError: it trains already, or the training failed.

        """
        lost_at: float | None = None

        def note(step: TrainedStep) -> None:
            nonlocal lost_at
            lost_at = None
            if on_step is not None:
                on_step(step)

        for pause_s in backoff():
            try:
                return self._train_once(request, note)
            except DaemonUnavailableError as error:
                if lost_at is None:
                    lost_at = time.monotonic()
                    log.warning("%s; asking again for %g s", error, self._return_deadline_s)
                if time.monotonic() + pause_s > lost_at + self._return_deadline_s:
                    raise
                time.sleep(pause_s)
        raise AssertionError("the pauses do not end")

    def _train_once(
        self, request: TrainRequest, on_step: Callable[[TrainedStep], None]
    ) -> tuple[TrainingReport, bytes]:
        with _explained():
            for event in self._stub.Train(train_to_proto(request)):
                if event.HasField("result"):
                    return result_from_proto(event.result)
                on_step(step_from_proto(event.progress))
        raise DaemonError("the daemon ended the training without a result")

    def evaluate(self, data: DataRequest, weights: bytes) -> Evaluation:
        """Let the daemon try weights on the device's held-out samples.

        Raises:
            DaemonError: it cannot.

        """
        with _explained():
            request = pb.EvaluateRequest(data=data_to_proto(data), weights=weights)
            return evaluation_from_proto(self._stub.Evaluate(request, timeout=_DEADLINE_S))

    def initial_weights(self, settings: Mapping[str, Any]) -> bytes:
        """Return the weights that a run begins with.

        Raises:
            DaemonError: the daemon cannot make them.

        """
        with _explained():
            request = pb.InitialWeightsRequest(settings_json=settings_to_text(settings))
            reply = self._stub.InitialWeights(request, timeout=_DEADLINE_S)
        return bytes(reply.weights)

    def promote(self, artefact: bytes) -> int:
        """Let the model in a file's content serve; return its version.

        Raises:
            DaemonError: it is refused.

        """
        with _explained():
            return int(self._stub.Promote(pb.PromoteRequest(artefact=artefact), timeout=_DEADLINE_S).version)

    def status(self) -> pb.StatusReply:
        """Return what the daemon does.

        Raises:
            DaemonError: it does not answer.

        """
        with _explained():
            return self._stub.Status(pb.StatusRequest(), timeout=_CONNECT_DEADLINE_S)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        code, details = (error.code(), error.details()) if isinstance(error, grpc.Call) else (None, str(error))
        if code is grpc.StatusCode.UNAVAILABLE:
            raise DaemonUnavailableError(f"the daemon has gone away ({details})") from None
        may_be_asked_again = code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED)
        raise (DaemonUnavailableError if may_be_asked_again else DaemonError)(str(details)) from None
