"""The gRPC service: translates between streams and the rooms of the sessions, and nothing else."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from edgenewton.common.failpoints import failpoint
from edgenewton.common.identity import Identity
from edgenewton.v1 import PROTOCOL_VERSION, TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb

from coordinator.serving.directory import Directory
from coordinator.serving.refusing import Refusals, abort_call
from coordinator.serving.room import Outbox, Room
from coordinator.serving.snapshots import collect_snapshot
from coordinator.serving.translation import SNAPSHOT_ACTIONS, joining_from_proto
from coordinator.session.members import Standing
from coordinator.session.refusal import RefusedError, Status

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class GradientExchangeService(exchange_pb2_grpc.GradientExchangeServicer):
    """Serves the sessions of one coordinator.

    Args:
        directory: the sessions.
        refusals: refuses calls.

    """

    def __init__(self, directory: Directory, refusals: Refusals) -> None:
        self._directory = directory
        self._gate = directory.gate
        self._refusals = refusals

    # ------------------------------------------------------------------ the service's methods

    async def Join(self, request: pb.JoinRequest, context: _Context) -> pb.JoinReply:
        try:
            identity = self._gate.check_device(context, request.device)
            room = self._room(request.session)
            self._gate.check_admission(identity, room.session)
            member = room.join(joining_from_proto(request), time.monotonic())
        except RefusedError as error:
            await self._refusals.refuse(context, error, request.session, request.device)
        room.outboxes[member.device].identity = identity
        self._gate.audit.joined(room.session.name, member.device, identity, context.peer())
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
            await self._refusals.refuse(context, error)
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
            await self._refusals.refuse(context, error, room.session.name, device)
        finally:
            reader.cancel()
            # Only a stream that broke finds its device still in the session here.
            if room.outboxes.get(device) is outbox and not self._directory.is_suspended:
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
            await self._refusals.refuse(context, error)
        self._count(room, device, received=len(snapshot.data))
        room.desk.put(snapshot)
        return pb.SnapshotReceipt(size=len(snapshot.data))

    async def DownloadSnapshot(self, request: pb.SnapshotRequest, context: _Context) -> AsyncIterator[pb.SnapshotChunk]:
        try:
            room, device = self._authenticate(context)
            step = await self._wait_for_snapshot(room, device)
        except RefusedError as error:
            await self._refusals.refuse(context, error)
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
            self._gate.check_device(context, request.device)
            room = self._directory.get(request.session)
            if room is None or request.device not in room.session.members:
                return pb.LeaveReply()
            if room.session.members[request.device].token != request.token:
                reason = f"the token sent for device {request.device!r} is not its own"
                raise RefusedError(Status.PERMISSION_DENIED, reason)
        except RefusedError as error:
            await self._refusals.refuse(context, error, request.session, request.device)
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
            identity = self._gate.identify(context)
            events = self._directory.events
            if request.session:
                room = self._room(request.session)
                self._gate.check_watcher(identity, room.session)
                events = room.chronicle.events
        except RefusedError as error:
            await self._refusals.refuse(context, error, request.session)
        async for event in events.follow():
            if request.session or self._may_watch(identity, event.session):
                yield event

    # ------------------------------------------------------------------ inner workings

    def _may_watch(self, identity: Identity | None, session: str) -> bool:
        room = self._directory.get(session)
        return room is not None and self._gate.may_watch(identity, room.session.settings)

    def _count(self, room: Room, device: str, received: int = 0, sent: int = 0) -> None:
        outbox = room.outboxes.get(device)
        if outbox is not None:
            outbox.use.received += received
            outbox.use.sent += sent

    def _room(self, name: str) -> Room:
        self._directory.check_open()
        return self._directory.find(name)

    def _authenticate(self, context: _Context) -> tuple[Room, str]:
        metadata = dict(context.invocation_metadata() or ())
        found = self._directory.find_by_token(str(metadata.get(TOKEN_METADATA_KEY, "")))
        if found is None:
            raise RefusedError(
                Status.PERMISSION_DENIED,
                f"no device has the token that was sent as {TOKEN_METADATA_KEY!r}; join a session first",
            )
        room, device = found
        self._gate.check_device(context, device)
        room.session.check_member(device)
        return room, device

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
            self._refusals.note(context, error, room.session.name, device)
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
