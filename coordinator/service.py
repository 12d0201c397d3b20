"""The gRPC service: translates between streams and the session state machine, and nothing else.

Everything runs on one event loop, so sessions need no locks.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from edgenewton.v1 import PROTOCOL_VERSION, TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codec import CODECS
from edgenewton.v1.framing import FramePacker, make_slice, read_slice

from coordinator import session as s
from coordinator.events import EventLog
from coordinator.refusal import RefusedError, Status
from coordinator.registry import SessionRegistry
from coordinator.settings import SessionSettings
from coordinator.step import SliceKey
from coordinator.translation import (
    SNAPSHOT_ACTIONS,
    commit_to_proto,
    contribution_from_proto,
    event_for,
    joining_from_proto,
)

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

TICK_S = 0.1
"""Seconds between looks at the sessions' deadlines."""
MAX_SNAPSHOT_BYTES = 4 << 30
SNAPSHOT_CHUNK_BYTES = 1 << 20
OPEN_DEADLINE_S = 15.0
"""Seconds in which a device that joined must open its stream; else it died in between."""


@dataclass(frozen=True)
class _Close:
    """The last item in a device's outbox: how its stream ends."""

    status: Status
    reason: str


@dataclass
class _Outbox:
    """What is on its way to one device, and how much went by."""

    joined_at: float
    queue: asyncio.Queue[pb.Frame | _Close] = field(default_factory=asyncio.Queue)
    is_open: bool = False
    bytes_received: int = 0
    bytes_sent: int = 0


@dataclass
class _Room:
    """What belongs to a session on this side of the state machine."""

    session: s.Session
    events: EventLog = field(default_factory=EventLog)
    outboxes: dict[str, _Outbox] = field(default_factory=dict)
    devices_by_token: dict[str, str] = field(default_factory=dict)
    snapshot: asyncio.Future[pb.SnapshotChunk] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class GradientExchangeService(exchange_pb2_grpc.GradientExchangeServicer):
    """Serves the sessions of one coordinator."""

    def __init__(self) -> None:
        self.registry = SessionRegistry()
        self._rooms: dict[str, _Room] = {}
        self._all_events = EventLog()

    # ------------------------------------------------------------------ sessions

    def create_session(self, name: str, settings: SessionSettings) -> s.Session:
        """Create a session that devices can join.

        Raises:
            ValueError: the name is empty.
            RefusedError: a session of this name is running.

        """
        session = self.registry.create(name, settings)
        room = _Room(session)
        self._rooms[name] = room
        self._rooms = {known.name: self._rooms[known.name] for known in self.registry}
        waiting = s.PhaseChanged(s.Phase.GATHERING, f"waiting for {settings.devices} devices")
        self._announce(room, waiting)
        return session

    def abort(self, name: str, reason: str) -> None:
        """End a session early and release its devices; nothing happens if it is over or does not exist."""
        room = self._rooms.get(name)
        if room is not None:
            room.session.abort(reason)
            self._carry_out(room)

    def abort_all(self, reason: str) -> None:
        """End all sessions early and release their devices."""
        for name in list(self._rooms):
            self.abort(name, reason)
        self._all_events.close()

    async def watch_deadlines(self) -> None:
        """Let the sessions act on their deadlines, for as long as the coordinator serves."""
        while True:
            await asyncio.sleep(TICK_S)
            for room in list(self._rooms.values()):
                now = time.monotonic()
                for device, outbox in list(room.outboxes.items()):
                    if not outbox.is_open and now > outbox.joined_at + OPEN_DEADLINE_S:
                        self._remove(room, device, f"it opened no stream within {OPEN_DEADLINE_S:g} s of joining")
                room.session.tick(now)
                self._carry_out(room)

    # ------------------------------------------------------------------ the service's methods

    async def Join(self, request: pb.JoinRequest, context: _Context) -> pb.JoinReply:
        try:
            room = self._room(request.session)
            membership = room.session.join(joining_from_proto(request), time.monotonic())
        except RefusedError as error:
            log.warning("refused: %s", error.reason)
            await _abort(context, error)
        room.outboxes[request.device] = _Outbox(time.monotonic())
        room.devices_by_token[membership.token] = request.device
        self._carry_out(room)
        return pb.JoinReply(
            protocol_version=PROTOCOL_VERSION,
            first_step=membership.first_step,
            settings=room.session.settings.to_proto(),
            token=membership.token,
            snapshot=SNAPSHOT_ACTIONS[membership.snapshot],
        )

    async def Exchange(self, request_iterator: AsyncIterator[pb.Frame], context: _Context) -> AsyncIterator[pb.Frame]:
        try:
            room, device = self._authenticate(context)
            outbox = room.outboxes[device]
            if outbox.is_open:
                raise RefusedError(Status.ALREADY_EXISTS, f"device {device!r} has a stream already")
        except RefusedError as error:
            await _abort(context, error)
        outbox.is_open = True
        reader = asyncio.create_task(self._read_frames(room, device, outbox, request_iterator))
        try:
            while not isinstance(item := await outbox.queue.get(), _Close):
                outbox.bytes_sent += item.ByteSize()
                yield item
            if item.status is not Status.OK:
                await _abort(context, RefusedError(item.status, item.reason))
        finally:
            reader.cancel()
            # Only a stream that broke finds its device still in the session here.
            if room.outboxes.get(device) is outbox:
                self._remove(room, device, "its connection broke")

    async def UploadSnapshot(
        self, request_iterator: AsyncIterator[pb.SnapshotChunk], context: _Context
    ) -> pb.SnapshotReceipt:
        try:
            room, device = self._authenticate(context)
            header, data = await _collect_snapshot(device, request_iterator)
        except RefusedError as error:
            await _abort(context, error)
        if not room.snapshot.done():
            room.snapshot.set_result(pb.SnapshotChunk(header=header, data=data))
        return pb.SnapshotReceipt(size=len(data))

    async def DownloadSnapshot(
        self,
        request: pb.SnapshotRequest,
        context: _Context,
    ) -> AsyncIterator[pb.SnapshotChunk]:
        try:
            room, device = self._authenticate(context)
            wait = room.session.settings.join_deadline_s
            await asyncio.wait([room.snapshot], timeout=wait)
            room.session.check_member(device)
            if not room.snapshot.done():
                raise RefusedError(
                    Status.DEADLINE_EXCEEDED,
                    f"device {device!r} needs the weights of session {room.session.name!r}, but the device that "
                    f"began it uploaded none within {wait:g} s",
                )
            snapshot = room.snapshot.result()
        except RefusedError as error:
            await _abort(context, error)
        data = memoryview(snapshot.data)
        yield pb.SnapshotChunk(header=snapshot.header, data=bytes(data[:SNAPSHOT_CHUNK_BYTES]))
        for begin in range(SNAPSHOT_CHUNK_BYTES, len(data), SNAPSHOT_CHUNK_BYTES):
            yield pb.SnapshotChunk(data=bytes(data[begin : begin + SNAPSHOT_CHUNK_BYTES]))

    async def Leave(self, request: pb.LeaveRequest, context: _Context) -> pb.LeaveReply:
        room = self._rooms.get(request.session)
        if room is not None and request.device in room.session.members:
            if room.devices_by_token.get(request.token) != request.device:
                reason = f"the token sent for device {request.device!r} is not its own"
                await _abort(context, RefusedError(Status.PERMISSION_DENIED, reason))
            if request.finished:
                room.session.finish(request.device, time.monotonic())
                self._carry_out(room)
            else:
                self._remove(room, request.device, request.reason or "it left")
        return pb.LeaveReply()

    async def Watch(self, request: pb.WatchRequest, context: _Context) -> AsyncIterator[pb.SessionEvent]:
        try:
            events = self._room(request.session).events if request.session else self._all_events
        except RefusedError as error:
            await _abort(context, error)
        async for event in events.follow():
            yield event

    # ------------------------------------------------------------------ inner workings

    def _room(self, name: str) -> _Room:
        return self._rooms[self.registry.find(name).name]

    def _authenticate(self, context: _Context) -> tuple[_Room, str]:
        metadata = dict(context.invocation_metadata() or ())
        token = metadata.get(TOKEN_METADATA_KEY, "")
        for room in self._rooms.values():
            if token in room.devices_by_token:
                device = room.devices_by_token[str(token)]
                room.session.check_member(device)
                return room, device
        raise RefusedError(
            Status.PERMISSION_DENIED,
            f"no device has the token that was sent as {TOKEN_METADATA_KEY!r}; join a session first",
        )

    async def _read_frames(self, room: _Room, device: str, outbox: _Outbox, frames: AsyncIterator[pb.Frame]) -> None:
        try:
            async for frame in frames:
                outbox.bytes_received += frame.ByteSize()
                self._take_frame(room, device, frame)
                self._carry_out(room)
            self._remove(room, device, "it closed its stream")
        except RefusedError as error:
            log.warning("refused: %s", error.reason)
            self._remove(room, device, error.reason, error.status)
        except Exception as error:
            if device not in room.session.members:
                return  # its stream was ended from this side
            log.exception("device %r, frame not taken", device)
            self._remove(room, device, f"the coordinator failed on its frame: {error}", Status.ABORTED)

    def _take_frame(self, room: _Room, device: str, frame: pb.Frame) -> None:
        session = room.session
        if device not in session.members:
            return
        codec, frame_bytes = CODECS[session.settings.codec], session.settings.frame_bytes
        now = time.monotonic()
        for piece in frame.slices:
            try:
                values = read_slice(piece, session.fingerprint, codec, frame_bytes)
            except ValueError as error:
                raise RefusedError(Status.INVALID_ARGUMENT, f"device {device!r}, step {frame.step}: {error}") from None
            key = SliceKey(piece.tensor, piece.offset)
            session.contribute(device, frame.step, frame.samples, key, values, now)
        if frame.HasField("contribution"):
            contribution = contribution_from_proto(frame.samples, frame.contribution)
            session.complete(device, frame.step, contribution, now)
        session.advance(now)

    def _remove(self, room: _Room, device: str, reason: str, status: Status = Status.OK) -> None:
        room.session.remove(device, reason, time.monotonic(), status)
        self._carry_out(room)

    def _carry_out(self, room: _Room) -> None:
        """Carry out the session's decisions: slices that are ready together leave in common frames."""
        session = room.session
        settings = session.settings
        packer: FramePacker | None = None
        for decision in session.take_decisions():
            match decision:
                case s.SliceReady(step, key, values):
                    spec = session.fingerprint[key.tensor]
                    packer = packer or FramePacker(step, 0, settings.frame_bytes)
                    full = packer.add(make_slice(key.tensor, spec, CODECS[settings.codec], key.offset, values))
                    if full is not None:
                        self._broadcast(room, full)
                case s.StepCommitted():
                    frame = packer.take() if packer else pb.Frame(step=decision.step)
                    packer = None
                    frame.commit.CopyFrom(commit_to_proto(decision))
                    self._broadcast(room, frame)
            # Before a removed device's outbox goes, because the announcement says what went through it.
            self._announce(room, decision)
            if isinstance(decision, s.DeviceRemoved):
                outbox = room.outboxes.pop(decision.device, None)
                if outbox is not None:
                    outbox.queue.put_nowait(_Close(decision.status, decision.reason))
        if packer is not None:
            self._broadcast(room, packer.take())

    def _broadcast(self, room: _Room, frame: pb.Frame) -> None:
        for outbox in room.outboxes.values():
            outbox.queue.put_nowait(frame)

    def _announce(self, room: _Room, decision: s.Decision) -> None:
        outbox = None
        if isinstance(decision, s.DeviceReported | s.DeviceRemoved):
            outbox = room.outboxes.get(decision.device)
        event = event_for(
            room.session,
            decision,
            bytes_received=outbox.bytes_received if outbox else 0,
            bytes_sent=outbox.bytes_sent if outbox else 0,
        )
        if event is not None:
            room.events.append(event)
            self._all_events.append(event)
        match decision:
            case s.DeviceJoined(membership):
                log.info("session %r: device %r joined", room.session.name, membership.joining.device)
            case s.DeviceRemoved(device, status, reason):
                level = logging.INFO if status is Status.OK else logging.WARNING
                log.log(level, "session %r: device %r left: %s", room.session.name, device, reason)
            case s.PhaseChanged(phase, reason):
                log.info("session %r: %s: %s", room.session.name, phase.value, reason)
                if room.session.is_over:
                    room.events.close()
                    room.snapshot.cancel()


async def _collect_snapshot(device: str, chunks: AsyncIterator[pb.SnapshotChunk]) -> tuple[pb.SnapshotHeader, bytes]:
    header: pb.SnapshotHeader | None = None
    data = bytearray()
    async for chunk in chunks:
        if header is None:
            header = chunk.header
            if header.size > MAX_SNAPSHOT_BYTES:
                raise RefusedError(
                    Status.RESOURCE_EXHAUSTED,
                    f"device {device!r}: a snapshot of {header.size} bytes is over the limit of {MAX_SNAPSHOT_BYTES}",
                )
        data += chunk.data
        if len(data) > header.size:
            break
    if header is None or len(data) != header.size or hashlib.sha256(data).digest() != header.sha256:
        raise RefusedError(
            Status.INVALID_ARGUMENT,
            f"device {device!r}: the snapshot is not what its header says ({len(data)} bytes came)",
        )
    return header, bytes(data)


async def _abort(context: _Context, error: RefusedError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.status.name], error.reason)
    raise AssertionError("abort() does not return")
