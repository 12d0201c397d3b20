"""The stream of a device to its coordinator: one thread keeps it up while the device computes.

The thread runs an event loop with the stream, its heartbeats, and the attempts to connect again. The device's own
thread hands frames in and waits for events; one condition guards what both touch.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import grpc
from edgenewton.common.backoff import backoff
from edgenewton.common.failpoints import failpoint
from edgenewton.common.loop_thread import LoopThread
from edgenewton.common.tls import TlsError
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.v1 import TOKEN_METADATA_KEY
from edgenewton.v1 import exchange_pb2 as pb

from edge_client.exchange.errors import Cause, ExchangeError
from edge_client.exchange.interface import Traffic
from edge_client.exchange.remote.assembly import AssembledStep, Assembly
from edge_client.exchange.remote.connection import CALL_TIMEOUT_S, Connection
from edge_client.exchange.remote.events import Committed, Event, Healed, Lost, MasksReady, StateWanted
from edge_client.exchange.remote.masking import Masking
from edge_client.exchange.remote.outgoing import Outgoing
from edge_client.exchange.remote.round_trip import RoundTrip
from edge_client.exchange.remote.snapshots import Metadata, download, upload
from edge_client.exchange.remote.status import (
    RETRIED,
    RETRIED_DOWNLOADS,
    RETRIED_JOINS,
    LostError,
    StreamEndedError,
    describe,
    explain,
)

log = logging.getLogger(__name__)

_EXCHANGE = "/edgenewton.v1.GradientExchange/Exchange"
_HEARTBEAT = pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
LEAVE_TIMEOUT_S = 2.0
MAX_REASON = 500
"""Characters; the coordinator keeps no more."""
UPLOAD_TIMEOUT_S = 60.0
MAX_WAITING_STEPS = 8
"""So many committed steps may wait to be applied; then the stream is not read on, and flow control holds it."""
MAX_HEALINGS = 5
"""So many snapshots in a row may come damaged or too late."""


class Link:
    """Keeps one device connected that has joined.

    Args:
        loop: runs the stream.
        connection: to the coordinator.
        request: with which the device joined.
        reply: what it was told.
        assembly: puts together what comes.
        reconnect_deadline_s: seconds in which a lost coordinator must be found again.
        round_trip: is told of the heartbeats and their answers.
        masking: answers what the coordinator asks of masks, with secure aggregation.

    """

    def __init__(
        self,
        loop: LoopThread,
        connection: Connection,
        request: pb.JoinRequest,
        reply: pb.JoinReply,
        assembly: Assembly,
        reconnect_deadline_s: float,
        round_trip: RoundTrip,
        masking: Masking | None = None,
    ) -> None:
        self.round_trip = round_trip
        self._masking = masking
        self._answers: deque[bytes] = deque()
        self._loop = loop
        self._connection = connection
        self._request = request
        self._reply = reply
        self._assembly = assembly
        self._reconnect_deadline_s = reconnect_deadline_s
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._healed: Healed | None = None
        self._is_healing = False
        self._heals_again = False
        """Whether this device was told to heal once more meanwhile."""
        self._is_state_wanted = False
        self._readers: Sequence[pb.ChannelKey] = ()
        """Of this device's state, with secure aggregation."""
        self._bytes_sent = request.ByteSize()
        self._bytes_received = reply.ByteSize()
        self._outgoing = Outgoing()
        self._is_heartbeat_due = False
        self._heard_at = 0.0
        self._healings = 0
        self._is_leaving = False
        self._stream: Any = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def traffic(self) -> Traffic:
        """Bytes sent and received so far."""
        return Traffic(self._bytes_sent, self._bytes_received)

    # ------------------------------------------------------------------ called by the device's thread

    def start(self) -> None:
        """Open the stream, and keep it open from now on."""
        if self._reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD:
            self._begin_healing()
        self._loop.spawn(self._keep_connected())

    def begin_step(self, step: int) -> None:
        """Forget the frames of the step before."""
        with self._changed:
            self._outgoing.begin(step)

    def send(self, frame: bytes, *, is_last: bool = False) -> None:
        """Send a frame of the step that is on; it is kept until the next step begins, to be sent again if need be."""
        with self._changed:
            self._outgoing.add(frame, is_last=is_last)
        self._loop.call_soon(self._wake.set)

    def wait(self, step: int, timeout_s: float) -> Event | None:
        """Return what has happened, each event once, or None if nothing has within `timeout_s`.

        A lost place stays lost. While the device heals no step is committed for it.
        """
        with self._changed:
            if self._changed.wait_for(lambda: self._has_event(step), timeout_s):
                return self._take_event(step)
        return None

    def take_step(self, step: int) -> AssembledStep | None:
        """Return a step if it has committed, once."""
        with self._changed:
            taken = self._assembly.take_step(step)
        if taken is not None:
            self._loop.call_soon(self._room.set)
        return taken

    def has_committed(self, step: int) -> bool:
        """Whether a step went on, with or without this device."""
        return self._assembly.received_until > step

    @property
    def lost(self) -> Lost | None:
        """How the place was lost, if it was."""
        return None if self._failure is None else Lost(self._failure)

    def take_wish(self) -> bool:
        """Return whether another device needs this one's state, once."""
        with self._changed:
            is_wanted, self._is_state_wanted = self._is_state_wanted, False
        return is_wanted

    def upload(self, step: int, state: bytes) -> None:
        """Hand this device's state in, in the background."""
        self._loop.spawn(self._upload(step, state))

    def upload_now(self, step: int, state: bytes) -> None:
        """Hand this device's state in, and wait until it has arrived."""
        self._loop.call(self._upload(step, state), UPLOAD_TIMEOUT_S)

    def leave(self, failure: str, ended: str = "") -> bool:
        """Give the place back; return whether this device's state is wanted first.

        Args:
            failure: why it leaves before its last step, if it does.
            ended: why the step before was the last one, if it was not the last of the run.

        Raises:
            grpc.RpcError: the coordinator is gone.

        """
        self._is_leaving = True
        request = pb.LeaveRequest(
            session=self._request.session,
            device=self._request.device,
            token=self._reply.token,
            reason=(failure or ended)[:MAX_REASON],
            finished=not failure,
        )
        return self._loop.call(self._leave(request), CALL_TIMEOUT_S)

    def explain(self, error: Exception) -> ExchangeError:
        """Return why the place was lost, as a user's program meets it."""
        device, connection = self._request.device, self._connection
        if isinstance(error, grpc.RpcError):
            return explain(error, device, connection.address, connection.tls)
        return ExchangeError(f"device {device!r}, session {self._request.session!r}: {error}", Cause.ABORTED)

    def cancel(self) -> None:
        """End the stream; call it on the loop."""
        if self._stream is not None:
            self._stream.cancel()

    def _has_event(self, step: int) -> bool:
        is_committed = not self._is_healing and self._assembly.has_committed(step)
        has_masks = self._masking is not None and self._masking.is_ready(step)
        has_news = is_committed or self._is_state_wanted or has_masks
        return self._failure is not None or self._healed is not None or has_news

    def _take_event(self, step: int) -> Event:
        if self._failure is not None:
            return Lost(self._failure)
        if self._healed is not None:
            healed, self._healed = self._healed, None
            if healed.data:
                self._outgoing.begin(step)  # the batch that is on was of the state that is replaced
            return healed
        taken = None if self._is_healing else self.take_step(step)
        if taken is not None:
            return Committed(taken)
        if self._masking is not None and self._masking.is_ready(step):
            return MasksReady()
        self._is_state_wanted = False
        return StateWanted()

    # ------------------------------------------------------------------ connection

    async def _leave(self, request: pb.LeaveRequest) -> bool:
        reply: pb.LeaveReply = await self._connection.stub.Leave(request, timeout=LEAVE_TIMEOUT_S)
        self._readers = tuple(reply.readers)
        return reply.snapshot_wanted

    async def _keep_connected(self) -> None:
        try:
            while True:
                try:
                    await self._run_stream()
                    raise LostError("the coordinator ended the stream")
                except (grpc.RpcError, LostError) as error:
                    if self._is_leaving:
                        return
                    if isinstance(error, grpc.RpcError) and not self._is_worth_another_try(error, RETRIED):
                        raise
                    log.warning("connection to %s lost, joining again: %s", self._connection.address, describe(error))
                await self._join_again()
        except (grpc.RpcError, ValueError, LostError) as error:
            self._fail(error)
        except Exception as error:
            log.exception("the exchange with %s failed", self._connection.address)
            self._fail(error)

    async def _join_again(self) -> None:
        """Join again, with growing pauses, until it succeeds or the deadline has passed."""
        deadline = time.monotonic() + self._reconnect_deadline_s
        for pause_s in backoff():
            await asyncio.sleep(pause_s)
            with self._changed:
                self._assembly.forget_uncommitted()
                if not self._is_healing:
                    self._request.next_step = self._assembly.received_until
                self._request.token = self._reply.token
                self._request.weights_digest = b""
                self._request.ClearField("sketch")
            await self._connection.renew()
            try:
                await self._rejoin()
            except grpc.RpcError as error:
                if not self._is_worth_another_try(error, RETRIED_JOINS) or time.monotonic() > deadline:
                    raise
                continue
            if self._reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD:
                self._begin_healing()
            return

    def _vouch_anew(self) -> None:
        """Let the certificate that is shown now vouch for the channel key: it may have been renewed."""
        if self._masking is None or self._connection.tls is None:
            return
        try:
            self._request.channel_key.CopyFrom(self._masking.vouch_with(self._connection.tls.read()))
        except TlsError as error:
            log.warning("the certificate of before goes on vouching for this device's masks: %s", error)

    async def _rejoin(self) -> None:
        self._vouch_anew()
        self._reply = await self._connection.stub.Join(self._request, timeout=CALL_TIMEOUT_S)
        self._bytes_sent += self._request.ByteSize()
        self._bytes_received += self._reply.ByteSize()

    def _is_worth_another_try(self, error: grpc.RpcError, retried: Collection[grpc.StatusCode]) -> bool:
        return error.code() in retried or self._connection.is_outdated(error)

    async def _run_stream(self) -> None:
        """Run the stream until it ends; raises why."""
        settings = self._reply.settings
        call = self._connection.channel.stream_stream(_EXCHANGE)(metadata=self._metadata)
        self._stream = call
        self._heard_at = time.monotonic()
        self.round_trip.begin()
        self._answers.clear()
        with self._changed:
            self._outgoing.rewind()
        helpers = [
            asyncio.create_task(self._send_frames(call)),
            asyncio.create_task(self._watch_silence(call, settings.heartbeat_s, settings.lease_s)),
        ]
        if self._is_healing:
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
            while self._answers:
                answer = self._answers.popleft()
                await call.write(answer)
                self._bytes_sent += len(answer)
            while (frame := self._next_frame()) is not None:
                failpoint("before-send", self._outgoing.step)
                await call.write(frame)
                failpoint("mid-send", self._outgoing.step)
                self._bytes_sent += len(frame)
                if self._outgoing.is_sent:
                    failpoint("after-send", self._outgoing.step)
            if self._is_heartbeat_due:
                self._is_heartbeat_due = False
                self.round_trip.leave()
                await call.write(_HEARTBEAT)
            await self._wake.wait()

    def _next_frame(self) -> bytes | None:
        with self._changed:
            is_late = self._outgoing.step < self._assembly.received_until
            is_replaced = self._healed is not None and bool(self._healed.data)
            return None if self._is_healing or is_late or is_replaced else self._outgoing.take()

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
        self._bytes_received += len(data)
        with self._changed:
            before = self._assembly.received_until
            frame = self._assembly.take_frame(data)
            if self._assembly.received_until > before:
                self._changed.notify_all()
            if frame.HasField("snapshot_wanted"):
                self._is_state_wanted = True
                self._readers = tuple(frame.snapshot_wanted.readers)
                self._changed.notify_all()
        if self._masking is not None and (answer := self._masking.answer(frame)) is not None:
            self._answers.append(answer.SerializeToString())
            self._wake.set()
        if frame.HasField("maskers"):
            with self._changed:
                self._changed.notify_all()
        if frame.HasField("heartbeat"):
            self.round_trip.arrive()
        if frame.HasField("commit"):
            failpoint("after-receive", frame.step)
        if not frame.HasField("heal"):
            return False
        if self._is_healing:
            self._heals_again = True  # the state that is on its way is outdated
            return False
        log.warning("this device heals: %s", frame.heal.reason)
        self._request.ClearField("next_step")  # its state is not to be gone on from
        self._begin_healing()
        return True

    async def _wait_for_room(self) -> None:
        while not self._has_room():
            self._room.clear()
            await self._room.wait()

    def _has_room(self) -> bool:
        with self._changed:  # the device's thread takes steps out meanwhile
            return self._is_healing or self._assembly.waiting < MAX_WAITING_STEPS

    # ------------------------------------------------------------------ snapshots

    def _begin_healing(self) -> None:
        with self._changed:
            self._is_healing = True
            self._heals_again = False
            self._is_state_wanted = False
            self._assembly.begin_healing()
            self._changed.notify_all()

    async def _heal(self, call: Any) -> None:
        """Fetch the state of a live member; the stream then carries all steps from it on."""
        try:
            settings = self._reply.settings
            timeout_s = settings.join_deadline_s + settings.rejoin_deadline_s + CALL_TIMEOUT_S
            snapshot = await download(self._connection.stub, self._metadata, timeout_s)
            self._bytes_received += len(snapshot.data)
            if not snapshot.is_intact:
                self._healings += 1
                if self._healings == MAX_HEALINGS:
                    raise ValueError(f"{MAX_HEALINGS} snapshots in a row arrived damaged")
                log.warning("a snapshot from %s arrived damaged; fetching another", self._connection.address)
                call.cancel()  # joining again begins anew
                return
            data = snapshot.data
            if self._masking is not None and data:
                data = self._masking.open_state(snapshot.header, data)
            if self._heals_again:
                self._begin_healing()
                await self._heal(call)
                return
            with self._changed:
                self._healings = 0
                self._assembly.rebase(snapshot.step)
                if data or self._healed is None:
                    self._healed = Healed(snapshot.step, data)
                self._is_healing = False
                self._changed.notify_all()
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
            sealing = None
            if self._masking is not None:
                state, sealing = self._masking.seal_state(step, state, self._readers)
            await upload(self._connection.stub, self._metadata, step, state, sealing)
            self._bytes_sent += len(state)
        except grpc.RpcError as error:
            log.warning("this device's state could not be handed in: %s", describe(error))
        except SecureAggregationError as error:
            log.warning("this device's state is not handed in: %s", error)

    # ------------------------------------------------------------------ inner workings

    @property
    def _metadata(self) -> Metadata:
        return ((TOKEN_METADATA_KEY, self._reply.token),)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()
