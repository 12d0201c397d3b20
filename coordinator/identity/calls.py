"""Stands before every method of a server with TLS: who calls, whether it asks too much, and for how long it may."""

import asyncio
import contextlib
import datetime as dt
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
from edgenewton.common.identity import Identity

from coordinator.identity.gate import AccessGate
from coordinator.identity.limits import IdentityLimits, LimitBook
from coordinator.identity.server_tls import ServerTls
from coordinator.session.refusal import RefusedError, Status

log = logging.getLogger(__name__)

CHECK_EVERY_S = 0.5
"""Seconds between looks at the revocation list and at the open calls' certificates."""

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler = Any
_Refuse = Callable[[_Context, RefusedError], Awaitable[NoReturn]]


@dataclass(eq=False)
class _Call:
    identity: Identity
    task: "asyncio.Task[Any] | None"
    refusal: RefusedError | None = None
    """Why it is ended from this side."""

    def end(self, refusal: RefusedError) -> None:
        self.refusal = refusal
        if self.task is not None:
            self.task.cancel()


class CallGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Lets in only calls of identities that count, within their limits, and ends those that count no longer.

    Args:
        gate: knows who calls.
        tls: says who was revoked.
        limits: of each identity.
        refuse: ends a call with a refusal.

    """

    def __init__(self, gate: AccessGate, tls: ServerTls, limits: IdentityLimits, refuse: _Refuse) -> None:
        self._gate = gate
        self._tls = tls
        self._book = LimitBook(limits)
        self._refuse = refuse
        self._calls: set[_Call] = set()

    async def watch(self, expel: Callable[[], None]) -> None:
        """Keep to the revocation list, for as long as the server serves.

        Args:
            expel: takes the places of revoked devices away; called when more are revoked.

        """
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                if self._tls.reread():
                    expel()
                self._end_invalid(dt.datetime.now(dt.UTC))
            except Exception:
                log.exception("the revocation list could not be kept to")

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]], details: grpc.HandlerCallDetails
    ) -> _Handler:
        """Return a method with this guard before it."""
        handler = await continuation(details)
        if handler is None:
            return None
        if handler.response_streaming:
            method = self._guard_stream(handler.stream_stream or handler.unary_stream, handler.request_streaming)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            method = self._guard_unary(handler.stream_unary or handler.unary_unary, handler.request_streaming)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        return make(method, handler.request_deserializer, handler.response_serializer)

    def _guard_unary(self, method: Any, takes_stream: bool) -> Any:
        async def guarded(request: Any, context: _Context) -> Any:
            try:
                with self._enter(context, is_stream=takes_stream) as call:
                    return await method(self._metered(request, call.identity) if takes_stream else request, context)
            except RefusedError as error:
                await self._refuse(context, error)

        return guarded

    def _guard_stream(self, method: Any, takes_stream: bool) -> Any:
        async def guarded(request: Any, context: _Context) -> None:
            # Writes are made here, so that a call can be ended while it waits for a slow reader.
            try:
                with self._enter(context, is_stream=True) as call:
                    given = self._metered(request, call.identity) if takes_stream else request
                    if not inspect.isasyncgenfunction(method):
                        await method(given, context)
                        return
                    async with contextlib.aclosing(method(given, context)) as responses:
                        async for response in responses:
                            await context.write(response)
            except RefusedError as error:
                await self._refuse(context, error)

        return guarded

    @contextlib.contextmanager
    def _enter(self, context: _Context, *, is_stream: bool) -> Iterator[_Call]:
        """Let a call in, and count it until it ends.

        Raises:
            RefusedError: it is not let in, or counts no longer.

        """
        identity = self._gate.identify(context)
        assert identity is not None  # there is TLS
        self._book.take_message(identity.name, time.monotonic())
        if is_stream:
            self._book.open_stream(identity.name)
        call = _Call(identity, asyncio.current_task())
        self._calls.add(call)
        try:
            yield call
        except asyncio.CancelledError:
            if call.refusal is None or call.task is None:
                raise
            call.task.uncancel()
            raise call.refusal from None
        finally:
            self._calls.discard(call)
            if is_stream:
                self._book.close_stream(identity.name)

    async def _metered(self, requests: AsyncIterator[Any], identity: Identity) -> AsyncIterator[Any]:
        async for request in requests:
            self._book.take_message(identity.name, time.monotonic())
            yield request

    def _end_invalid(self, now: dt.datetime) -> None:
        for call in list(self._calls):
            fault = self._tls.fault(call.identity, now)
            if fault and call.refusal is None:
                call.end(RefusedError(Status.UNAUTHENTICATED, fault))
