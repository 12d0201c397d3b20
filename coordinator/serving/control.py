"""The gRPC service through which a run opens and ends its sessions on this coordinator.

It is there on coordinators that are processes of their own. With TLS it takes a certificate with the label "operator".
In plaintext whoever reaches the port may use it, as he may join a session: `edge-coordinator serve` listens on loopback
unless it is told otherwise.
"""

import logging
import time
from typing import Any

import grpc
import grpc.aio
from edgenewton.v1 import control_pb2 as pb
from edgenewton.v1 import control_pb2_grpc
from pydantic import ValidationError

from coordinator.serving.directory import Directory
from coordinator.serving.refusing import Refusals
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.settings import SessionSettings

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class ControlService(control_pb2_grpc.ControlServicer):
    """Controls the sessions of a coordinator.

    Args:
        directory: the sessions.
        refusals: refuses calls.

    """

    def __init__(self, directory: Directory, refusals: Refusals) -> None:
        self._directory = directory
        self._gate = directory.gate
        self._refusals = refusals

    async def OpenSession(self, request: pb.OpenSessionRequest, context: _Context) -> pb.OpenSessionReply:
        try:
            identity = self._gate.check_operator(context)
            self._directory.check_open()
            settings = self._gate.with_defaults(_settings(request.settings_json))
            self._directory.create(request.session, settings)
        except ValueError as error:
            refusal = RefusedError(Status.INVALID_ARGUMENT, str(error))
            await self._refusals.refuse(context, refusal, request.session)
        except RefusedError as error:
            await self._refusals.refuse(context, error, request.session)
        log.info("session %r: opened by %s", request.session, identity or context.peer())
        self._gate.audit.controlled("opened", request.session, "", identity, context.peer())
        return pb.OpenSessionReply()

    async def KeepSession(self, request: pb.KeepSessionRequest, context: _Context) -> pb.KeepSessionReply:
        try:
            self._gate.check_operator(context)
            session = self._directory.find(request.session).session
        except RefusedError as error:
            await self._refusals.refuse(context, error, request.session)
        session.keep(time.monotonic())
        return pb.KeepSessionReply(is_over=session.is_over, reason=session.reason)

    async def AbortSession(self, request: pb.AbortSessionRequest, context: _Context) -> pb.AbortSessionReply:
        try:
            identity = self._gate.check_operator(context)
        except RefusedError as error:
            await self._refusals.refuse(context, error, request.session)
        reason = request.reason or "whoever opened it ended it"
        self._directory.abort(request.session, reason)
        self._gate.audit.controlled("ended", request.session, reason, identity, context.peer())
        return pb.AbortSessionReply()


def _settings(text: str) -> SessionSettings:
    try:
        return SessionSettings.model_validate_json(text)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ValueError("the session's settings: " + "; ".join(problems).removeprefix(": ")) from None
