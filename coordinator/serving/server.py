"""The gRPC server around the service: address, health checking, reflection, orderly stop."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import grpc
import grpc.aio
from edgenewton.common.loop_thread import LoopThread
from edgenewton.common.memory import keep_freed_memory
from edgenewton.v1 import (
    MAX_MESSAGE_BYTES,
    TRANSPORT_OPTIONS,
    control_pb2,
    exchange_pb2,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.identity.calls import CallGuard
from coordinator.identity.gate import AccessGate
from coordinator.identity.limits import IdentityLimits
from coordinator.serving.connections import connection_options
from coordinator.serving.control import ControlService
from coordinator.serving.directory import Directory
from coordinator.serving.intake import Intake
from coordinator.serving.methods import generic_handler
from coordinator.serving.refusing import Refusals
from coordinator.serving.service import GradientExchangeService
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.record import Record

_SERVICE = exchange_pb2.DESCRIPTOR.services_by_name["GradientExchange"]
SERVICE_NAME: str = _SERVICE.full_name
_CONTROL = control_pb2.DESCRIPTOR.services_by_name["Control"]
CONTROL_NAME: str = _CONTROL.full_name

T = TypeVar("T")

TICK_S = 0.1
"""Seconds between looks at the sessions' deadlines."""

_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A port in use is an error, not a second coordinator behind the same address.
    ("grpc.so_reuseport", 0),
    *TRANSPORT_OPTIONS,
]


class CoordinatorServer:
    """One coordinator, listening on one address. Use it on a running event loop.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        record: where its sessions are recorded; None for nowhere.
        is_controlled: whether runs in other processes may open sessions.
        gate: knows who may do what; plaintext for everybody unless given.
        limits: of each identity; those that suit any device unless given.

    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        record: Record | None = None,
        *,
        is_controlled: bool = False,
        gate: AccessGate | None = None,
        limits: IdentityLimits | None = None,
    ) -> None:
        self.directory = Directory(record, gate)
        self._refusals = Refusals(self.directory)
        limits = limits or IdentityLimits()
        self._intake = Intake(limits)
        self._tls = self.directory.gate.tls
        self._guard: CallGuard | None = None
        if self._tls is not None:
            self._guard = CallGuard(self.directory.gate, self._tls, limits, self._refusals.refuse)
        self.is_controlled = is_controlled
        self.host = host
        self.port = port
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        self._server = grpc.aio.server(
            interceptors=[] if self._guard is None else [self._guard],
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes),
                *connection_options(limits),
                *_OPTIONS,
            ],
        )
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen; a port of 0 becomes a free one.

        Raises:
            OSError: the address cannot be listened on.

        """
        keep_freed_memory()
        exchange = GradientExchangeService(self.directory, self._refusals, self._intake)
        refuse = self._refusals.refuse
        handlers = [generic_handler(_SERVICE, exchange, self._intake, refuse, as_bytes=("Exchange",))]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if self.is_controlled:
            control = ControlService(self.directory, self._refusals)
            handlers.append(generic_handler(_CONTROL, control, self._intake, refuse))
            names.append(CONTROL_NAME)
        self._server.add_generic_rpc_handlers(tuple(handlers))
        reflection.enable_server_reflection(names, self._server)
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(self.address)
            else:
                self.port = self._server.add_secure_port(self.address, self._tls.server_credentials())
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self.address}: {error}") from None
        await self._server.start()
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._watchers.append(asyncio.create_task(self._watch_deadlines()))
        if self._guard is not None:
            self._watchers.append(asyncio.create_task(self._guard.watch(self._expel_revoked)))

    async def stop(self, reason: str, grace_s: float = 2.0, *, suspend: bool = False) -> None:
        """Release the devices and close the port; sessions are aborted, or suspended so that they can be resumed."""
        await self._health.enter_graceful_shutdown()
        if suspend:
            self.directory.suspend(reason)
        else:
            self.directory.abort_all(reason)
        await self._server.stop(grace_s)
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._intake.close()
        self.directory.gate.audit.close()

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.directory.tick(time.monotonic())

    def _expel_revoked(self) -> None:
        self.directory.expel_revoked(time.monotonic())


class EmbeddedCoordinator:
    """A coordinator in a thread of its own, for programs that are not asynchronous themselves."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        gate: AccessGate | None = None,
        limits: IdentityLimits | None = None,
        record: Record | None = None,
    ) -> None:
        self._loop = LoopThread("coordinator")
        self._server = self._call(self._start(host, port, gate, limits, record))

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        return self._server.address

    @property
    def directory(self) -> Directory:
        """Its sessions; they belong to the coordinator's thread, and others may look at them alone."""
        return self._server.directory

    def create_session(self, name: str, settings: SessionSettings) -> None:
        """Create a session that devices can join."""
        self._call(self._create_session(name, settings))

    def is_over(self, name: str) -> bool:
        """Tell whether a session has ended or was aborted."""
        return self._call(self._is_over(name))

    def abort(self, name: str, reason: str) -> None:
        """End a session early and release its devices."""
        self._call(self._abort(name, reason))

    def stop(self, reason: str = "the coordinator stops") -> None:
        """Abort what is running and end the thread."""
        self._call(self._server.stop(reason))
        self._loop.stop()

    async def _start(
        self, host: str, port: int, gate: AccessGate | None, limits: IdentityLimits | None, record: Record | None
    ) -> CoordinatorServer:
        server = CoordinatorServer(host, port, record, gate=gate, limits=limits)
        await server.start()
        return server

    async def _create_session(self, name: str, settings: SessionSettings) -> None:
        self._server.directory.create(name, settings)

    async def _is_over(self, name: str) -> bool:
        return self._server.directory.find(name).session.is_over

    async def _abort(self, name: str, reason: str) -> None:
        self._server.directory.abort(name, reason)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.call(coroutine, timeout_s=30)


@contextlib.contextmanager
def embedded_coordinator(
    host: str = "127.0.0.1",
    port: int = 0,
    gate: AccessGate | None = None,
    limits: IdentityLimits | None = None,
    record: Record | None = None,
) -> Iterator[EmbeddedCoordinator]:
    """Run a coordinator for the length of a `with` block."""
    coordinator = EmbeddedCoordinator(host, port, gate, limits, record)
    try:
        yield coordinator
    finally:
        coordinator.stop()
