"""The gRPC service through which a run opens and ends its sessions on this coordinator.

It is there on coordinators that are processes of their own. In plaintext whoever reaches the port may use it, as he
may join a session: `edge-coordinator serve` listens on loopback unless it is told otherwise.
"""

import logging
import time
from typing import Any

import grpc
import grpc.aio
from edgenewton.v1 import control_pb2 as pb
from edgenewton.v1 import control_pb2_grpc
from pydantic import ValidationError

from coordinator.refusal import RefusedError, Status
from coordinator.service import GradientExchangeService, abort_call
from coordinator.settings import SessionSettings

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class ControlService(control_pb2_grpc.ControlServicer):
    """Controls the sessions of a coordinator.

    Args:
        exchange: the service that has them.

    """

    def __init__(self, exchange: GradientExchangeService) -> None:
        self._exchange = exchange

    async def OpenSession(self, request: pb.OpenSessionRequest, context: _Context) -> pb.OpenSessionReply:
        try:
            if self._exchange.is_suspended:
                raise RefusedError(Status.UNAVAILABLE, "the coordinator is shutting down; try again when it is back")
            self._exchange.create_session(request.session, _settings(request.settings_json))
        except ValueError as error:
            await abort_call(context, RefusedError(Status.INVALID_ARGUMENT, str(error)))
        except RefusedError as error:
            await abort_call(context, error)
        log.info("session %r: opened by %s", request.session, context.peer())
        return pb.OpenSessionReply()

    async def KeepSession(self, request: pb.KeepSessionRequest, context: _Context) -> pb.KeepSessionReply:
        try:
            session = self._exchange.registry.find(request.session)
        except RefusedError as error:
            await abort_call(context, error)
        session.keep(time.monotonic())
        return pb.KeepSessionReply(is_over=session.is_over, reason=session.reason)

    async def AbortSession(self, request: pb.AbortSessionRequest, context: _Context) -> pb.AbortSessionReply:
        self._exchange.abort(request.session, request.reason or "whoever opened it ended it")
        return pb.AbortSessionReply()


def _settings(text: str) -> SessionSettings:
    try:
        return SessionSettings.model_validate_json(text)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ValueError("the session's settings: " + "; ".join(problems).removeprefix(": ")) from None
