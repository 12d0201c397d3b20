"""How a call is refused: its sender is told the status and the text, and the refusal is written down."""

import logging
import time
from typing import Any, NoReturn

import grpc
import grpc.aio

from coordinator.serving.directory import Directory
from coordinator.session.refusal import RefusedError

log = logging.getLogger(__name__)

MAX_DETAILS = 2_000
"""Characters of a refusal's text that its sender is told; gRPC itself drops a call's end over 8 KiB."""

_Context = grpc.aio.ServicerContext[Any, Any]


class Refusals:
    """Refuses calls, and writes it down.

    Args:
        directory: counts the refusals of its sessions.

    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def refuse(self, context: _Context, error: RefusedError, session: str = "", device: str = "") -> NoReturn:
        """End a call with a refusal, and note it; session and device are what the caller said."""
        self.note(context, error, session, device)
        await abort_call(context, error)

    def note(self, context: _Context, error: RefusedError, session: str, device: str) -> None:
        """Write a refusal down: in the log, in the audit log and in the session's statistics."""
        log.warning("refused: %s", error.reason[:MAX_DETAILS])
        self._directory.gate.note_refusal(context, error, session, device)
        self._directory.note_refusal(error, session, device, time.time())


async def abort_call(context: _Context, error: RefusedError) -> NoReturn:
    """End a call with the status and the text of a refusal."""
    await context.abort(grpc.StatusCode[error.status.name], error.reason[:MAX_DETAILS])
    raise AssertionError("abort() does not return")
