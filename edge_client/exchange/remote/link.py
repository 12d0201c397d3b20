"""The connection of a device to its coordinator: one thread that keeps it up while the device computes.

The thread runs an event loop with a stream, its heartbeats, and the attempts to connect again. The device's own thread
hands frames in and waits for news; `changed` guards what both touch.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

import grpc
from edgenewton.common.backoff import backoff
from edgenewton.common.failpoints import failpoint
from edgenewton.common.loop_thread import LoopThread
from edgenewton.common.memory import keep_freed_memory
from edgenewton.common.tls import TlsFiles
from edgenewton.v1 import TOKEN_METADATA_KEY
from edgenewton.v1 import exchange_pb2 as pb

from edge_client.exchange.remote.assembly import Assembly
from edge_client.exchange.remote.connection import Connection
from edge_client.exchange.remote.snapshots import Metadata, download, upload
from edge_client.exchange.remote.status import (
    RETRIED,
    RETRIED_DOWNLOADS,
    RETRIED_FIRST_JOINS,
    RETRIED_JOINS,
    LostError,
    StreamEndedError,
    describe,
)

log = logging.getLogger(__name__)

_EXCHANGE = "/edgenewton.v1.GradientExchange/Exchange"
_HEARTBEAT = pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
CALL_TIMEOUT_S = 10.0
LEAVE_TIMEOUT_S = 2.0
MAX_WAITING_STEPS = 8
"""So many committed steps may wait to be applied; then the stream is not read on, and flow control holds it."""
MAX_HEALINGS = 5
"""So many snapshots in a row may come damaged or too late."""

T = TypeVar("T")


class Link:
    """Keeps one device connected.

    Args:
        address: of the coordinator, host:port.
        reconnect_deadline_s: seconds in which a lost coordinator must be found again.
        tls: this device's certificate and key; None for plaintext.

    """

    def __init__(self, address: str, reconnect_deadline_s: float, tls: TlsFiles | None = None) -> None:
        keep_freed_memory()
        self.address = address
        self.tls = tls
        self._connection = Connection(address, tls)
        self.changed = threading.Condition()
        self.failure: Exception | None = None
        self.snapshot: tuple[int, bytes] | None = None
        """A state that was fetched for this device, and its step."""
        self.is_healing = False
        self.is_state_wanted = False
        self.assembly: Assembly | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self._reconnect_deadline_s = reconnect_deadline_s
        self._request = pb.JoinRequest()
        self._reply = pb.JoinReply()
        self._frames: list[bytes] = []
        self._frames_step = 0
        self._sent = 0
        self._has_last = False
        self._is_heartbeat_due = False
        self._heard_at = 0.0
        self._healings = 0
        self._is_closed = False
        self._is_leaving = False
        self._stream: Any = None
        self._loop = LoopThread("exchange")
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    # ------------------------------------------------------------------ called by the device's thread

    def connect(self, timeout_s: float) -> None:
        """Open the channel.

        Raises:
            NoEntryError: nobody answers in time, or this side and the other do not trust each other.

        """
        self._call(self._connection.open(timeout_s), timeout_s + CALL_TIMEOUT_S)

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Take a place; a coordinator that goes down meanwhile has the time of a reconnection to come back.

        Raises:
            grpc.RpcError: the coordinator refuses it or is gone.

        """
        self._request = request
        return self._call(self._join_first(request), self._reconnect_deadline_s + 2 * CALL_TIMEOUT_S)

    def start(self, assembly: Assembly) -> None:
        """Open the stream, and keep it open from now on."""
        self.assembly = assembly
        if self._reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD:
            self._begin_healing()
        self._loop.spawn(self._keep_connected())

    def begin_step(self, step: int) -> None:
        """Forget the frames of the step before."""
        with self.changed:
            self._frames, self._frames_step, self._sent, self._has_last = [], step, 0, False

    def send(self, frame: bytes, *, is_last: bool = False) -> None:
        """Send a frame of the step that is on; it is kept until the next step begins, to be sent again if need be."""
        with self.changed:
            self._frames.append(frame)
            self._has_last = is_last
        self._loop.call_soon(self._wake.set)

    def upload(self, step: int, state: bytes) -> None:
        """Hand this device's state in, in the background."""
        self.is_state_wanted = False
        self._loop.spawn(self._upload(step, state))

    def made_room(self) -> None:
        """Note that steps were taken out of the assembly."""
        self._loop.call_soon(self._room.set)

    def leave(self, session: str, device: str, failure: str) -> bool:
        """Give the place back; return whether this device's state is wanted first.

        Raises:
            grpc.RpcError: the coordinator is gone.

        """
        self._is_leaving = True
        request = pb.LeaveRequest(
            session=session, device=device, token=self._reply.token, reason=failure, finished=not failure
        )
        return self._call(self._leave(request))

    def upload_now(self, step: int, state: bytes) -> None:
        """Hand this device's state in, and wait until it has arrived."""
        self._call(self._upload(step, state), timeout_s=60.0)

    def close(self) -> None:
        """End the stream, the connection and the thread."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._call(self._close(), timeout_s=5.0)
        except (grpc.RpcError, TimeoutError) as error:
            log.debug("closing the connection to %s: %s", self.address, error)
        self._loop.stop()

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = CALL_TIMEOUT_S + 5.0) -> T:
        return self._loop.call(coroutine, timeout_s)

    # ------------------------------------------------------------------ connection

    async def _join_first(self, request: pb.JoinRequest) -> pb.JoinReply:
        deadline = time.monotonic() + self._reconnect_deadline_s
        pauses = backoff()
        while True:
            try:
                return await self._join(request)
            except grpc.RpcError as error:
                if error.code() not in RETRIED_FIRST_JOINS or time.monotonic() > deadline:
                    raise
                log.warning("joining at %s failed, trying again: %s", self.address, describe(error))
            await asyncio.sleep(next(pauses))

    async def _join(self, request: pb.JoinRequest) -> pb.JoinReply:
        self._reply = await self._connection.stub.Join(request, timeout=CALL_TIMEOUT_S)
        self.bytes_sent += request.ByteSize()
        self.bytes_received += self._reply.ByteSize()
        return self._reply

    async def _leave(self, request: pb.LeaveRequest) -> bool:
        reply: pb.LeaveReply = await self._connection.stub.Leave(request, timeout=LEAVE_TIMEOUT_S)
        return reply.snapshot_wanted

    async def _keep_connected(self) -> None:
        try:
            while not self._is_closed:
                try:
                    await self._run_stream()
                    raise LostError("the coordinator ended the stream")
                except (grpc.RpcError, LostError) as error:
                    if self._is_closed or self._is_leaving:
                        return
                    if isinstance(error, grpc.RpcError) and not self._is_worth_another_try(error, RETRIED):
                        raise
                    log.warning("connection to %s lost, joining again: %s", self.address, describe(error))
                await self._join_again()
        except (grpc.RpcError, ValueError, LostError) as error:
            self._fail(error)
        except Exception as error:
            log.exception("the exchange with %s failed", self.address)
            self._fail(error)

    async def _join_again(self) -> None:
        """Join again, with growing pauses, until it succeeds or the deadline has passed."""
        assembly = self._require_assembly()
        deadline = time.monotonic() + self._reconnect_deadline_s
        for pause_s in backoff():
            await asyncio.sleep(pause_s)
            with self.changed:
                assembly.forget_uncommitted()
                if not self.is_healing:
                    self._request.next_step = assembly.received_until
                self._request.token = self._reply.token
                self._request.weights_digest = b""
            await self._connection.renew()
            try:
                reply = await self._join(self._request)
            except grpc.RpcError as error:
                if not self._is_worth_another_try(error, RETRIED_JOINS) or time.monotonic() > deadline:
                    raise
                continue
            if reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD:
                self._begin_healing()
            return

    def _is_worth_another_try(self, error: grpc.RpcError, retried: Collection[grpc.StatusCode]) -> bool:
        return error.code() in retried or self._connection.is_outdated(error)

    async def _run_stream(self) -> None:
        """Run the stream until it ends; raises why."""
        settings = self._reply.settings
        call = self._connection.channel.stream_stream(_EXCHANGE)(metadata=self._metadata)
        self._stream = call
        self._heard_at = time.monotonic()
        with self.changed:
            self._sent = 0
        helpers = [
            asyncio.create_task(self._send_frames(call)),
            asyncio.create_task(self._watch_silence(call, settings.heartbeat_s, settings.lease_s)),
        ]
        if self.is_healing:
            helpers.append(asyncio.create_task(self._heal(call)))
        try:
            while (data := await call.read()) is not _EOF:
                if self._take_frame(data):
                    helpers.append(asyncio.create_task(self._heal(call)))
                await self._wait_for_room()
            code, details = await call.code(), await call.details()
            if code is not grpc.StatusCode.OK:
                raise StreamEndedError(code, details)
        except asyncio.CancelledError:
            raise LostError("the stream was cancelled") from None
        finally:
            for helper in helpers:
                helper.cancel()
            call.cancel()

    async def _send_frames(self, call: Any) -> None:
        """Send what the device's thread hands in, from the first frame of its step on."""
        while True:
            self._wake.clear()
            while (frame := self._next_frame()) is not None:
                failpoint("before-send", self._frames_step)
                await call.write(frame)
                failpoint("mid-send", self._frames_step)
                self.bytes_sent += len(frame)
                if self._has_last and self._sent == len(self._frames):
                    failpoint("after-send", self._frames_step)
            if self._is_heartbeat_due:
                self._is_heartbeat_due = False
                await call.write(_HEARTBEAT)
            await self._wake.wait()

    def _next_frame(self) -> bytes | None:
        with self.changed:
            received = self._require_assembly().received_until
            if self.is_healing or self._frames_step < received or self._sent >= len(self._frames):
                return None
            self._sent += 1
            return self._frames[self._sent - 1]

    async def _watch_silence(self, call: Any, heartbeat_s: float, lease_s: float) -> None:
        """Show that this device lives, and end a stream on which nothing came for a whole lease."""
        while True:
            await asyncio.sleep(heartbeat_s)
            if time.monotonic() > self._heard_at + lease_s:
                call.cancel()
                return
            self._is_heartbeat_due = True
            self._wake.set()

    def _take_frame(self, data: bytes) -> bool:
        """Take a frame in; return whether this device was told to heal."""
        self._heard_at = time.monotonic()
        self.bytes_received += len(data)
        assembly = self._require_assembly()
        with self.changed:
            before = assembly.received_until
            frame = assembly.take_frame(data)
            if assembly.received_until > before:
                self.changed.notify_all()
            if frame.HasField("snapshot_wanted"):
                self.is_state_wanted = True
                self.changed.notify_all()
        if frame.HasField("commit"):
            failpoint("after-receive", frame.step)
        if not frame.HasField("heal") or self.is_healing:
            return False
        log.warning("this device heals: %s", frame.heal.reason)
        self._request.ClearField("next_step")  # its state is not to be gone on from
        self._begin_healing()
        return True

    async def _wait_for_room(self) -> None:
        assembly = self._require_assembly()
        while not self.is_healing and assembly.waiting >= MAX_WAITING_STEPS:
            self._room.clear()
            await self._room.wait()

    # ------------------------------------------------------------------ snapshots

    def _begin_healing(self) -> None:
        with self.changed:
            self.is_healing = True
            self.is_state_wanted = False
            self._require_assembly().begin_healing()
            self.changed.notify_all()

    async def _heal(self, call: Any) -> None:
        """Fetch the state of a live member; the stream then carries all steps from it on."""
        try:
            settings = self._reply.settings
            timeout_s = settings.join_deadline_s + settings.rejoin_deadline_s + CALL_TIMEOUT_S
            snapshot = await download(self._connection.stub, self._metadata, timeout_s)
            self.bytes_received += len(snapshot.data)
            if not snapshot.is_intact:
                self._healings += 1
                if self._healings == MAX_HEALINGS:
                    raise ValueError(f"{MAX_HEALINGS} snapshots in a row arrived damaged")
                log.warning("a snapshot from %s arrived damaged; fetching another", self.address)
                call.cancel()  # joining again begins anew
                return
            with self.changed:
                self._healings = 0
                self._require_assembly().rebase(snapshot.step)
                if snapshot.data:
                    self.snapshot = (snapshot.step, snapshot.data)
                # Else this device's own state has become that of the session.
                self.is_healing = False
                self.changed.notify_all()
            self._wake.set()
        except grpc.RpcError as error:
            if error.code() in RETRIED_DOWNLOADS:
                call.cancel()  # the stream is lost too, or will be: joining again begins anew
            else:
                self._fail(error)
        except ValueError as error:
            self._fail(error)

    async def _upload(self, step: int, state: bytes) -> None:
        try:
            await upload(self._connection.stub, self._metadata, step, state)
            self.bytes_sent += len(state)
        except grpc.RpcError as error:
            log.warning("this device's state could not be handed in: %s", describe(error))

    # ------------------------------------------------------------------ inner workings

    async def _close(self) -> None:
        await self._loop.cancel_tasks()
        if self._stream is not None:
            self._stream.cancel()
        await self._connection.close()

    @property
    def _metadata(self) -> Metadata:
        return ((TOKEN_METADATA_KEY, self._reply.token),)

    def _fail(self, error: Exception) -> None:
        with self.changed:
            self.failure = error
            self.changed.notify_all()

    def _require_assembly(self) -> Assembly:
        if self.assembly is None:
            raise RuntimeError("the exchange has not started")
        return self.assembly
