"""The gRPC service: translates between streams and the rooms of the sessions, and nothing else."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from edgenewton.common.failpoints import failpoint
from edgenewton.common.identity import Identity
from edgenewton.v1 import PROTOCOL_VERSION, TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb

from coordinator.identity.gate import Gate
from coordinator.serving.directory import SessionRegistry
from coordinator.serving.room import Outbox, Room
from coordinator.serving.snapshots import collect_snapshot
from coordinator.serving.translation import SNAPSHOT_ACTIONS, joining_from_proto
from coordinator.session.admission import Admission
from coordinator.session.members import Standing
from coordinator.session.refusal import RefusalLog, RefusedError, Status
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.events import EventLog
from coordinator.telemetry.record import Record, SessionRecord

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

TICK_S = 0.1
"""Seconds between looks at the sessions' deadlines."""


class GradientExchangeService(exchange_pb2_grpc.GradientExchangeServicer):
    """Serves the sessions of one coordinator.

    Args:
        record: where the sessions are recorded, so that another process can resume them; None for nowhere.
        gate: who may do what; everybody may do everything unless given.

    """

    def __init__(self, record: Record | None = None, gate: Gate | None = None) -> None:
        self.gate = gate or Gate()
        self.registry = SessionRegistry()
        self.is_suspended = False
        self._record = record
        self.refusals = RefusalLog()
        self._rooms: dict[str, Room] = {}
        self._all_events = EventLog()

    # ------------------------------------------------------------------ sessions

    @property
    def rooms(self) -> list[Room]:
        """The sessions that are known, the oldest first."""
        return list(self._rooms.values())

    @property
    def all_events(self) -> EventLog:
        """What happens in all sessions."""
        return self._all_events

    def create_session(self, name: str, settings: SessionSettings) -> Session:
        """Create a session that devices can join.

        Raises:
            ValueError: the name is empty.
            RefusedError: a session of this name is running, or nobody can show that he may join.

        """
        self.gate.check_session(settings)
        session = self.registry.create(name, settings)
        if self._record is not None:
            self._record.begin_session(name, settings)
        self._open_room(session, f"waiting for {settings.devices} devices")
        return session

    def resume_session(self, record: SessionRecord) -> Session:
        """Go on with a recorded session: its devices gather again, and their own states decide at which step.

        Raises:
            RefusedError: a session of this name is running, or nobody can show that he may join.

        """
        self.gate.check_session(record.settings)
        session = self.registry.create(record.name, record.settings)
        admission = Admission(record.name, record.settings)
        admission.fingerprint, admission.options = record.fingerprint, record.options
        step = record.settings.first_step if record.committed is None else record.committed + 1
        if record.fingerprint:
            session.restore(admission, step, record.devices)
        who = ", ".join(record.devices) or "its devices"
        self._open_room(session, f"resumed at step {step}; waiting for {who}")
        return session

    def abort(self, name: str, reason: str) -> None:
        """End a session early and release its devices; nothing happens if it is over or does not exist."""
        room = self._rooms.get(name)
        if room is not None:
            room.session.abort(reason)
            room.carry_out()

    def abort_all(self, reason: str) -> None:
        """End all sessions early and release their devices."""
        for name in list(self._rooms):
            self.abort(name, reason)
        self._all_events.close()

    def suspend_all(self, reason: str) -> None:
        """Close all streams and leave the sessions as they are recorded: devices wait for the coordinator's return."""
        self.is_suspended = True
        for room in self._rooms.values():
            for outbox in room.outboxes.values():
                outbox.close(Status.UNAVAILABLE, reason)
            room.chronicle.close()
        self._all_events.close()

    def expel_revoked(self) -> None:
        """Take the places of devices away whose certificates were revoked."""
        for room in self.rooms:
            for device, outbox in list(room.outboxes.items()):
                reason = self.gate.revocation(outbox.identity)
                if reason:
                    self.gate.audit.revoked(room.session.name, device, outbox.identity)
                    room.remove(device, reason, time.monotonic(), Status.UNAUTHENTICATED)

    async def watch_deadlines(self) -> None:
        """Let the sessions act on their deadlines, for as long as the coordinator serves."""
        while True:
            await asyncio.sleep(TICK_S)
            for room in [] if self.is_suspended else list(self._rooms.values()):
                try:
                    room.tick(time.monotonic())
                except Exception:
                    log.exception("session %r: its deadlines could not be watched", room.session.name)

    # ------------------------------------------------------------------ the service's methods

    async def Join(self, request: pb.JoinRequest, context: _Context) -> pb.JoinReply:
        try:
            identity = self.gate.check_device(context, request.device)
            room = self._room(request.session)
            self.gate.check_admission(identity, room.session)
            member = room.join(joining_from_proto(request), time.monotonic())
        except RefusedError as error:
            await self.refuse(context, error, request.session, request.device)
        room.outboxes[member.device].identity = identity
        self.gate.audit.joined(room.session.name, member.device, identity, context.peer())
        return pb.JoinReply(
            protocol_version=PROTOCOL_VERSION,
            first_step=room.session.step.number if member.joining.next_step is None else member.joining.next_step,
            settings=room.session.settings.to_proto(),
            token=member.token,
            snapshot=SNAPSHOT_ACTIONS[member.standing],
        )

    async def Exchange(  # type: ignore[override]  # frames come and go as bytes: see `CoordinatorServer.start`
        self, request_iterator: AsyncIterator[bytes], context: _Context
    ) -> AsyncIterator[bytes]:
        try:
            room, device = self._authenticate(context)
            outbox = room.outboxes[device]
            if outbox.stream is not None:
                raise RefusedError(Status.ALREADY_EXISTS, f"device {device!r} has a stream already")
        except RefusedError as error:
            await self.refuse(context, error)
        outbox.stream = context
        room.session.members.connected(device, time.monotonic())
        room.find_donor(time.monotonic())
        reader = asyncio.create_task(self._read_frames(context, room, device, outbox, request_iterator))
        try:
            while outbox.end is None:
                outbox.wake.clear()
                for frame in room.frames_for(outbox):
                    outbox.use.sent += len(frame)
                    yield frame
                    failpoint("mid-broadcast", room.session.step.number - 1)
                if outbox.end is None:
                    await outbox.wake.wait()
            status, reason = outbox.end
            if status is not Status.OK:
                await abort_call(context, RefusedError(status, reason))
        except RefusedError as error:
            room.remove(device, error.reason, time.monotonic(), error.status)
            await self.refuse(context, error, room.session.name, device)
        finally:
            reader.cancel()
            # Only a stream that broke finds its device still in the session here.
            if room.outboxes.get(device) is outbox and not self.is_suspended:
                outbox.stream = None
                room.session.members.disconnected(device, time.monotonic())

    async def UploadSnapshot(
        self, request_iterator: AsyncIterator[pb.SnapshotChunk], context: _Context
    ) -> pb.SnapshotReceipt:
        try:
            room, device = self._authenticate(context)
            if room.desk.donor != device and not room.session.members.is_last_with_state(device):
                raise RefusedError(
                    Status.FAILED_PRECONDITION, f"device {device!r} hands in a state that nobody asked for"
                )
            snapshot = await collect_snapshot(device, request_iterator, room.session.settings.max_snapshot_bytes)
        except RefusedError as error:
            await self.refuse(context, error)
        self._count(room, device, received=len(snapshot.data))
        room.desk.put(snapshot)
        return pb.SnapshotReceipt(size=len(snapshot.data))

    async def DownloadSnapshot(self, request: pb.SnapshotRequest, context: _Context) -> AsyncIterator[pb.SnapshotChunk]:
        try:
            room, device = self._authenticate(context)
            step = await self._wait_for_snapshot(room, device)
        except RefusedError as error:
            await self.refuse(context, error)
        snapshot = room.desk.snapshot
        if step is None or snapshot is None:  # meanwhile its own state became that of the session
            yield pb.SnapshotChunk(header=pb.SnapshotHeader(step=room.session.step.number))
            return
        # From here on the log keeps the device's place; it reads while it loads.
        room.healed(device, step)
        for chunk in snapshot.chunks():
            self._count(room, device, sent=len(chunk.data))
            yield chunk
        room.find_donor(time.monotonic())

    async def Leave(self, request: pb.LeaveRequest, context: _Context) -> pb.LeaveReply:
        try:
            self.gate.check_device(context, request.device)
            room = self._rooms.get(request.session)
            if room is None or request.device not in room.session.members:
                return pb.LeaveReply()
            if room.session.members[request.device].token != request.token:
                reason = f"the token sent for device {request.device!r} is not its own"
                raise RefusedError(Status.PERMISSION_DENIED, reason)
        except RefusedError as error:
            await self.refuse(context, error, request.session, request.device)
        if not request.finished:
            room.remove(request.device, request.reason or "it left", time.monotonic())
            return pb.LeaveReply()
        if room.session.members.is_last_with_state(request.device) and room.usable_step() != room.session.step.number:
            return pb.LeaveReply(snapshot_wanted=True)
        room.session.finish(request.device, time.monotonic())
        room.carry_out()
        return pb.LeaveReply()

    async def Watch(self, request: pb.WatchRequest, context: _Context) -> AsyncIterator[pb.SessionEvent]:
        try:
            identity = self.gate.identify(context)
            events = self._all_events
            if request.session:
                room = self._room(request.session)
                self.gate.check_watcher(identity, room.session)
                events = room.chronicle.events
        except RefusedError as error:
            await self.refuse(context, error, request.session)
        async for event in events.follow():
            if request.session or self._may_watch(identity, event.session):
                yield event

    async def refuse(self, context: _Context, error: RefusedError, session: str = "", device: str = "") -> NoReturn:
        """End a call with a refusal, and note it; session and device are what the caller said."""
        self._note_refusal(context, error, session, device)
        await abort_call(context, error)

    # ------------------------------------------------------------------ inner workings

    def _open_room(self, session: Session, reason: str) -> None:
        room = Room(session, self._publish, self._record)
        self._rooms[session.name] = room
        self._rooms = {known.name: self._rooms[known.name] for known in self.registry}
        room.chronicle.open(reason)

    def _publish(self, event: pb.SessionEvent) -> None:
        self._all_events.append(event)
        self.gate.audit.apply(event)

    def _may_watch(self, identity: Identity | None, session: str) -> bool:
        room = self._rooms.get(session)
        return room is not None and self.gate.may_watch(identity, room.session.settings)

    def _note_refusal(self, context: _Context, error: RefusedError, session: str, device: str) -> None:
        log.warning("refused: %s", error.reason)
        self.gate.note_refusal(context, error, session, device)
        now = time.time()
        self.refusals.add(error, session, device, now)
        room = self._rooms.get(session)
        if room is not None:
            room.chronicle.statistics.refuse(device, error.status.name, error.reason, now)

    def _count(self, room: Room, device: str, received: int = 0, sent: int = 0) -> None:
        outbox = room.outboxes.get(device)
        if outbox is not None:
            outbox.use.received += received
            outbox.use.sent += sent

    def _room(self, name: str) -> Room:
        if self.is_suspended:
            raise RefusedError(Status.UNAVAILABLE, "the coordinator is shutting down; try again when it is back")
        return self._rooms[self.registry.find(name).name]

    def _authenticate(self, context: _Context) -> tuple[Room, str]:
        metadata = dict(context.invocation_metadata() or ())
        token = metadata.get(TOKEN_METADATA_KEY, "")
        for room in self._rooms.values():
            device = room.devices_by_token.get(str(token))
            if device is not None:
                self.gate.check_device(context, device)
                room.session.check_member(device)
                return room, device
        raise RefusedError(
            Status.PERMISSION_DENIED,
            f"no device has the token that was sent as {TOKEN_METADATA_KEY!r}; join a session first",
        )

    async def _read_frames(
        self, context: _Context, room: Room, device: str, outbox: Outbox, frames: AsyncIterator[bytes]
    ) -> None:
        try:
            async for frame in frames:
                if room.outboxes.get(device) is not outbox:
                    return  # it joined again meanwhile
                outbox.use.received += len(frame)
                room.take_frame(device, frame, time.monotonic())
            # Its connection broke, or it closed its side: it keeps its place for its lease.
            outbox.close(Status.OK, "the stream was closed by the device")
        except RefusedError as error:
            self._note_refusal(context, error, room.session.name, device)
            room.remove(device, error.reason, time.monotonic(), error.status)
        except Exception as error:
            if room.outboxes.get(device) is not outbox or outbox.end is not None:
                return  # its stream was ended from this side
            log.exception("device %r, frame not taken", device)
            room.remove(device, f"the coordinator failed on its frame: {error}", time.monotonic(), Status.ABORTED)

    async def _wait_for_snapshot(self, room: Room, device: str) -> int | None:
        """Return the step of a snapshot that the device can use; None if it needs none any more."""
        settings = room.session.settings
        wait_s = settings.join_deadline_s + settings.rejoin_deadline_s
        deadline = time.monotonic() + wait_s
        while True:
            room.session.check_member(device)
            if room.session.members[device].standing is not Standing.HEALING:
                return None
            step = room.usable_step()
            if step is not None:
                return step
            room.find_donor(time.monotonic())
            with contextlib.suppress(TimeoutError):
                await room.desk.wait(min(1.0, settings.lease_s))
            if time.monotonic() > deadline:
                raise RefusedError(
                    Status.DEADLINE_EXCEEDED,
                    f"device {device!r} needs the state of session {room.session.name!r}, but no member handed its "
                    f"own in within {wait_s:g} s",
                )


async def abort_call(context: _Context, error: RefusedError) -> NoReturn:
    """End a call with the status and the text of a refusal."""
    await context.abort(grpc.StatusCode[error.status.name], error.reason)
    raise AssertionError("abort() does not return")
