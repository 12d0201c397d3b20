"""The gRPC service: translates between streams and the rooms of the sessions, and nothing else."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from edgenewton.common.identity import Identity
from edgenewton.v1 import PROTOCOL_VERSION, TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import form_to_proto

from coordinator.serving.directory import Directory
from coordinator.serving.intake import SMALL_BYTES, Intake
from coordinator.serving.outboxes import Outbox
from coordinator.serving.refusing import Refusals, abort_call
from coordinator.serving.room import Room
from coordinator.serving.translation import SNAPSHOT_ACTIONS, joining_from_proto
from coordinator.session.members import Joining, Member
from coordinator.session.refusal import RefusedError, Status, UndecidedError

_Context = grpc.aio.ServicerContext[Any, Any]


class GradientExchangeService(exchange_pb2_grpc.GradientExchangeServicer):
    """Serves the sessions of one coordinator.

    Args:
        directory: the sessions.
        refusals: refuses calls.
        intake: reads frames.

    """

    def __init__(self, directory: Directory, refusals: Refusals, intake: Intake) -> None:
        self._directory = directory
        self._intake = intake
        self._gate = directory.gate
        self._refusals = refusals

    # ------------------------------------------------------------------ the service's methods

    async def Join(self, request: pb.JoinRequest, context: _Context) -> pb.JoinReply:
        try:
            identity = self._gate.check_device(context, request.device)
            self._gate.check_admission(identity, self._room(request.session).session)
            joining = await self._intake.work(request.ByteSize() > SMALL_BYTES, joining_from_proto, request)
            room, member = await self._join(request.session, joining, identity)
        except UndecidedError as error:  # no refusal: the device asks again
            await abort_call(context, error)
        except RefusedError as error:
            await self._refusals.refuse(context, error, request.session, request.device)
        self._gate.audit.joined(room.session.name, member.device, identity, context.peer())
        return pb.JoinReply(
            protocol_version=PROTOCOL_VERSION,
            first_step=room.session.step.number if member.joining.next_step is None else member.joining.next_step,
            batches=room.session.batches or 0,
            form=form_to_proto(room.session.form),
            settings=room.session.settings.to_proto(),
            token=member.token,
            snapshot=SNAPSHOT_ACTIONS[member.standing],
        )

    async def Exchange(  # type: ignore[override]  # frames come and go as bytes: see `coordinator.serving.methods`
        self, request_iterator: AsyncIterator[bytes], context: _Context
    ) -> AsyncIterator[bytes]:
        try:
            room, device = self._authenticate(context)
            self._directory.check_open()
            outbox = room.attach(device, time.monotonic())
        except RefusedError as error:
            await self._refusals.refuse(context, error)
        reader = asyncio.create_task(self._read_frames(context, room, outbox, request_iterator))
        try:
            async with contextlib.aclosing(room.frames_for(outbox)) as frames:
                async for frame in frames:
                    yield frame
            status, reason = outbox.end or (Status.OK, "")
            if status is not Status.OK:
                refusal = RefusedError(status, reason)
                if status is Status.INVALID_ARGUMENT and not reader.done():  # what it sent earlier was outvoted
                    self._refusals.note(context, refusal, room.session.name, device)
                await abort_call(context, refusal)
        except RefusedError as error:
            room.remove(device, error.reason, time.monotonic(), error.status)
            await self._refusals.refuse(context, error, room.session.name, device)
        finally:
            reader.cancel()
            # Only a stream that broke finds its device still in the session here.
            room.detach(outbox, time.monotonic())

    async def UploadSnapshot(
        self, request_iterator: AsyncIterator[pb.SnapshotChunk], context: _Context
    ) -> pb.SnapshotReceipt:
        try:
            room, device = self._authenticate(context)
            size = await room.healing.donate(device, request_iterator)
        except RefusedError as error:
            await self._refusals.refuse(context, error)
        return pb.SnapshotReceipt(size=size)

    async def DownloadSnapshot(self, request: pb.SnapshotRequest, context: _Context) -> AsyncIterator[pb.SnapshotChunk]:
        try:
            room, device = self._authenticate(context)
            async with contextlib.aclosing(room.healing.chunks_for(device)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except RefusedError as error:
            await self._refusals.refuse(context, error)

    async def Leave(self, request: pb.LeaveRequest, context: _Context) -> pb.LeaveReply:
        try:
            self._gate.check_device(context, request.device)
            room = self._directory.get(request.session)
            if room is None:
                return pb.LeaveReply()
            await room.settled()
            is_wanted = room.leave(
                request.device, request.token, time.monotonic(), finished=request.finished, reason=request.reason
            )
        except RefusedError as error:
            await self._refusals.refuse(context, error, request.session, request.device)
        return pb.LeaveReply(snapshot_wanted=is_wanted, readers=room.healing.readers() if is_wanted else ())

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

    async def _join(self, session: str, joining: Joining, identity: Identity | None) -> tuple[Room, Member]:
        """Give a device a place, once it is decided whether it may have one."""
        since = time.monotonic()
        while True:
            room = self._room(session)
            await room.settled()
            self._gate.check_admission(identity, room.session)
            try:
                return room, room.join(joining, time.monotonic(), identity)
            except UndecidedError:
                if not await room.waiting.until_changed(since):
                    raise

    def _may_watch(self, identity: Identity | None, session: str) -> bool:
        room = self._directory.get(session)
        return room is not None and self._gate.may_watch(identity, room.session.settings)

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

    async def _read_frames(self, context: _Context, room: Room, outbox: Outbox, frames: AsyncIterator[bytes]) -> None:
        try:
            async for data in frames:
                frame = await self._intake.work(room.is_large(len(data)), room.read_frame, outbox.device, data)
                if not await room.take(outbox, frame):
                    return
            # Its connection broke, or it closed its side: it keeps its place for its lease.
            room.close(outbox)
        except RefusedError as error:
            self._refusals.note(context, error, room.session.name, outbox.device)
            room.remove(outbox.device, error.reason, time.monotonic(), error.status)
        except Exception as error:
            if room.is_open(outbox):  # else its stream was ended from this side
                room.fail(error)
