"""A coordinator that is a process of its own, as a run sees it: opens sessions there, and keeps them alive."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Protocol

import grpc
from edgenewton.common.tls import TlsFiles, open_channel
from edgenewton.common.tls_diagnosis import diagnose
from edgenewton.v1 import control_pb2 as pb
from edgenewton.v1 import control_pb2_grpc

from coordinator.session.settings import SessionSettings

log = logging.getLogger(__name__)

OWNER_LEASE_S = 15.0
"""The coordinator aborts a session when its run was silent for so long."""
_KEEP_EVERY_S = 3.0
_CALL_TIMEOUT_S = 5.0
_OPEN_TIMEOUT_S = 30.0
"""A coordinator that is being started again may take so long to answer."""


class CoordinatorError(RuntimeError):
    """The coordinator does not answer, or refuses; the text says why."""


class SessionHost(Protocol):
    """Where a run's sessions live: in its own process, or in another."""

    @property
    def address(self) -> str:
        """Where devices find it, as host:port."""

    def create_session(self, name: str, settings: SessionSettings) -> None:
        """Create a session that devices can join."""

    def is_over(self, name: str) -> bool:
        """Tell whether a session has ended or was aborted."""

    def abort(self, name: str, reason: str) -> None:
        """End a session early and release its devices; nothing happens if it is over."""


class RemoteCoordinator:
    """A connection to a coordinator.

    Args:
        address: of the coordinator, host:port, for this process and for the devices.

    """

    def __init__(self, address: str, tls: TlsFiles | None = None) -> None:
        self.address = address
        self._tls = tls
        self._channel = open_channel(address, tls)
        self._stub = control_pb2_grpc.ControlStub(self._channel)
        self._kept: frozenset[str] = frozenset()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="keep-sessions", daemon=True)
        self._thread.start()

    def create_session(self, name: str, settings: SessionSettings) -> None:
        """Create a session that lives as long as this process says that it does.

        Raises:
            CoordinatorError: the coordinator does not answer or refuses.

        """
        # Else a call that waits for the coordinator would take all its time before it fails.
        self._check_trust(f"session {name!r} cannot be opened")
        settings = settings.model_copy(update={"owner_lease_s": OWNER_LEASE_S})
        request = pb.OpenSessionRequest(session=name, settings_json=settings.model_dump_json())
        try:
            self._stub.OpenSession(request, timeout=_OPEN_TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise CoordinatorError(self._explain(error, f"session {name!r} cannot be opened")) from None
        self._kept |= {name}

    def is_over(self, name: str) -> bool:
        """Tell whether a session has ended or was aborted; not while the coordinator cannot be asked."""
        return self._keep(name)

    def abort(self, name: str, reason: str) -> None:
        """End a session early and release its devices; a coordinator that is gone ends it by itself."""
        self._kept -= {name}
        try:
            self._stub.AbortSession(pb.AbortSessionRequest(session=name, reason=reason), timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            log.warning("%s", self._explain(error, f"session {name!r} cannot be ended"))

    def close(self, reason: str) -> None:
        """End the sessions that are left, and the connection."""
        self._is_closed.set()
        self._thread.join(timeout=2 * _CALL_TIMEOUT_S)
        for name in sorted(self._kept):
            self.abort(name, reason)
        self._channel.close()

    def _keep_alive(self) -> None:
        while not self._is_closed.wait(_KEEP_EVERY_S):
            for name in sorted(self._kept):
                self._keep(name)

    def _keep(self, name: str) -> bool:
        """Give a sign of life for a session; return whether it is over."""
        try:
            request = pb.KeepSessionRequest(session=name)
            reply: pb.KeepSessionReply = self._stub.KeepSession(request, timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            log.warning("%s", self._explain(error, f"session {name!r} cannot be kept alive"))
            # One that does not know it was started anew without its record.
            return isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND
        return reply.is_over

    def _check_trust(self, what: str) -> None:
        advice = diagnose(self.address, self._tls)
        if advice:
            raise CoordinatorError(f"{what}: something answers at {self.address}, but {advice}")

    def _explain(self, error: grpc.RpcError, what: str) -> str:
        code, details = (error.code(), error.details()) if isinstance(error, grpc.Call) else (None, str(error))
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return (
                f"{what}: no coordinator answers at {self.address}. Is the address right, and "
                f"`edge-coordinator serve --on-demand` running there? ({details})"
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return f"{what}: the coordinator at {self.address} is embedded in another run"
        return f"{what}: {details}"


@contextlib.contextmanager
def remote_coordinator(address: str, tls: TlsFiles | None = None) -> Iterator[RemoteCoordinator]:
    """Use a coordinator for the length of a `with` block; sessions that are left are aborted."""
    coordinator = RemoteCoordinator(address, tls)
    try:
        yield coordinator
    finally:
        coordinator.close("the run is over")
