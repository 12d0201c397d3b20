"""A room: devices attach, exchange and leave; and what the downlink that it is given decides. No network."""

import asyncio
import contextlib
import hashlib

import numpy as np
import pytest
from bare_client import SPEC, elements, gradient_frame
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.framing import FramePacker

from coordinator.serving.broadcast import BroadcastLog
from coordinator.serving.downlink import Broadcast, Downlink
from coordinator.serving.outboxes import Outboxes
from coordinator.serving.room import Room
from coordinator.session.decisions import Phase, SliceReady, StepCommitted
from coordinator.session.members import Joining, Standing
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution
from coordinator.telemetry.announcement import commit_to_proto
from coordinator.telemetry.chronicle import Chronicle


class Relay:
    """A downlink that keeps what is ready until an answer comes from above."""

    def __init__(self, outboxes: Outboxes) -> None:
        self.outboxes = outboxes
        self.upward: list[SliceReady] = []
        self.committed: StepCommitted | None = None
        self.flushed = 0

    def begin(self, layout) -> None:
        self.layout = layout

    def add(self, ready) -> None:
        self.upward.append(ready)

    def commit(self, committed) -> None:
        self.committed = committed

    def flush(self) -> None:
        self.flushed += 1

    def restart(self, step) -> None:
        self.upward.clear()
        self.outboxes.log.restart(step)

    def answer(self, values: float) -> None:
        """Let a step be committed above, with this mean of everything there."""
        packer = FramePacker(self.committed.step, 0, self.layout.frame_bytes)
        (piece,) = self.layout.slices(0)
        assert not list(packer.add(piece, np.full(6, values, np.float32).data))
        self.outboxes.broadcast(packer.take(pb.Frame(commit=commit_to_proto(self.committed))))
        self.outboxes.log.begin_step(self.committed.step + 1)


def make_room(make_downlink=None, **settings) -> tuple[Room, Downlink]:
    session = Session("s", SessionSettings(**settings))
    outboxes = Outboxes(BroadcastLog(session.settings.replay_bytes, 0))
    downlink = make_downlink(outboxes) if make_downlink else Broadcast(outboxes)
    return Room(session, Chronicle(session, lambda event: None, None), outboxes, downlink), downlink


def joining(device: str, **fields) -> Joining:
    return Joining(device, (SPEC,), {}, fields.pop("weights_digest", b""), **fields)


def enter(room: Room, *devices: str):
    """Let devices join, and attach their streams."""
    for device in devices:
        room.join(joining(device), 0.0)
    return [room.attach(device, 0.0) for device in devices]


async def read(room: Room, outbox, count: int) -> list[pb.Frame]:
    """Return the next frames of a stream."""
    async with asyncio.timeout(5), contextlib.aclosing(room.frames_for(outbox)) as frames:
        return [pb.Frame.FromString(await anext(frames)) for _ in range(count)]


async def read_to_the_end(room: Room, outbox) -> list[bytes]:
    async with asyncio.timeout(5):
        return [frame async for frame in room.frames_for(outbox)]


def send(room: Room, outbox, step: int, values: float, samples: int = 1) -> bool:
    frame = room.read_frame(outbox.device, gradient_frame(step, values, samples).SerializeToString())
    return room.take_frame(outbox, frame, 0.0)


def test_a_device_has_one_stream_at_a_time_and_may_open_it_again():
    room, _ = make_room(devices=1)
    (outbox,) = enter(room, "a")
    assert room.session.members["a"].is_connected
    with pytest.raises(RefusedError, match="device 'a' has a stream already"):
        room.attach("a", 0.0)
    room.detach(outbox, 0.0)
    assert not room.session.members["a"].is_connected
    assert room.attach("a", 0.0) is outbox
    with pytest.raises(RefusedError, match="device 'b' is not in session 's'"):
        room.attach("b", 0.0)


def test_a_failure_of_the_coordinator_ends_the_session_for_all_alike():
    class Broken(Broadcast):
        def commit(self, committed) -> None:
            raise RuntimeError("no memory is left")

    room, _ = make_room(Broken, devices=2)
    outboxes = enter(room, "a", "b")
    for outbox in outboxes:
        assert send(room, outbox, 0, 1.0)
    assert room.session.phase is Phase.ABORTED
    text = "session 's' aborted: the coordinator failed in step 0: no memory is left"
    assert [outbox.end for outbox in outboxes] == [(Status.ABORTED, text)] * 2
    with pytest.raises(RefusedError, match="no memory is left"):
        room.join(joining("a"), 0.0)


def test_a_device_that_joins_again_ends_its_stream_and_is_counted_on():
    room, _ = make_room(devices=2)
    (before,) = enter(room, "a")
    send(room, before, 0, 1.0)
    received = before.use.received
    token = room.session.members["a"].token
    room.join(joining("a", next_step=0, token=token), 0.0)
    after = room.attach("a", 0.0)
    assert before.end == (Status.ABORTED, "device 'a' has joined again")
    assert not room.is_open(before)
    assert not send(room, before, 0, 2.0)
    assert after.use.received == received > 0
    room.detach(before, 0.0)  # the old stream's end says nothing of the new one
    assert room.session.members["a"].is_connected


def test_leaving_takes_the_devices_own_token_and_ends_its_stream():
    room, _ = make_room(devices=1)
    (outbox,) = enter(room, "a")
    token = room.session.members["a"].token
    with pytest.raises(RefusedError, match="is not its own"):
        room.leave("a", "guess", 0.0, finished=True, reason="")
    assert not room.leave("b", "guess", 0.0, finished=True, reason="")
    assert not room.leave("a", token, 0.0, finished=True, reason="")
    assert outbox.end == (Status.OK, "finished")
    assert room.session.phase is Phase.ENDED
    assert asyncio.run(read_to_the_end(room, outbox)) == []


def snapshot_chunks(data: bytes, step: int):
    async def chunks():
        header = pb.SnapshotHeader(step=step, size=len(data), sha256=hashlib.sha256(data).digest())
        yield pb.SnapshotChunk(header=header, data=data)

    return chunks()


def test_the_last_one_with_the_state_hands_it_in_before_it_goes():
    async def run() -> None:
        room, _ = make_room(devices=2, quorum=1)
        room.join(joining("a", weights_digest=b"the session's"), 0.0)
        room.attach("a", 0.0)
        room.join(joining("b", weights_digest=b"other"), 0.0)
        room.attach("b", 0.0)
        assert room.session.members["b"].standing is Standing.HEALING
        token = room.session.members["a"].token
        assert room.leave("a", token, 0.0, finished=True, reason="")
        assert "a" in room.session.members
        assert await room.healing.donate("a", snapshot_chunks(b"state", 0)) == 5
        assert not room.leave("a", token, 0.0, finished=True, reason="")
        assert "a" not in room.session.members
        chunks = [chunk async for chunk in room.healing.chunks_for("b")]
        assert b"".join(chunk.data for chunk in chunks) == b"state"
        assert room.session.members["b"].standing is Standing.LAGGING

    asyncio.run(run())


def test_suspending_closes_the_streams_and_takes_no_more_frames():
    room, _ = make_room(devices=1)
    (outbox,) = enter(room, "a")
    room.suspend("stopped")
    assert outbox.end == (Status.UNAVAILABLE, "stopped")
    assert not send(room, outbox, 0, 1.0)
    assert room.session.step.number == 0
    assert "a" in room.session.members


def test_means_and_commits_go_to_the_devices_only_as_the_downlink_lets_them():
    async def run() -> None:
        room, relay = make_room(Relay, devices=2)
        a, b = enter(room, "a", "b")
        for step, above in enumerate((5.0, 7.0)):
            send(room, a, step, 1.0, samples=1)
            send(room, b, step, 4.0, samples=2)
            (ready,) = relay.upward
            assert np.allclose(ready.values, 3.0)
            assert (relay.committed.step, relay.committed.samples) == (step, 3)
            assert room.session.step.number == step + 1  # below all is done; above it is not
            waiting = asyncio.create_task(read(room, a, 1))
            await asyncio.sleep(0)
            assert not waiting.done()
            relay.answer(above)
            for frames in (await waiting, await read(room, b, 1)):
                assert np.allclose(elements(frames[0]), above)
                assert frames[0].commit.devices == 2
            relay.upward.clear()
        assert relay.flushed > 0

    asyncio.run(run())


def test_a_device_that_comes_back_while_the_answer_from_above_is_awaited_gets_it_too():
    async def run() -> None:
        room, relay = make_room(Relay, devices=2)
        a, b = enter(room, "a", "b")
        send(room, a, 0, 1.0)
        send(room, b, 0, 1.0)
        room.detach(b, 0.0)
        room.join(joining("b", next_step=0, token=room.session.members["b"].token), 0.0)
        b = room.attach("b", 0.0)
        relay.answer(5.0)
        (frame,) = await read(room, b, 1)
        assert frame.step == 0
        assert np.allclose(elements(frame), 5.0)
        assert send(room, b, 1, 1.0)

    asyncio.run(run())


def test_a_device_whose_step_lies_within_one_of_several_batches_gets_a_snapshot():
    """The steps on its stream begin elsewhere: they would never fit its state."""
    room, _ = make_room(devices=2, quorum=1)
    for device in "ab":
        room.join(joining(device), 0.0)
    for step in (0, 5):
        for device in "ab":
            room.session.complete(device, step, Contribution(1, 0.0, batches=5), 1.0)
        room.session.advance(1.0)
        room.tick(1.0)
    standings = {}
    for next_step in (4, 5, 7, 10):
        room.remove("b", "restarted", 2.0)
        standings[next_step] = room.join(joining("b", next_step=next_step), 2.0).standing
    assert standings == {
        4: Standing.HEALING,
        5: Standing.LAGGING,
        7: Standing.HEALING,
        10: Standing.LAGGING,
    }
