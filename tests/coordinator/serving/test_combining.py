"""A large step is combined beside the event loop: others go on, and nothing comes between its end and its commit."""

import asyncio
import functools
import threading

import numpy as np
import pytest
from bare_client import gradient_frame
from edgenewton.v1 import exchange_pb2 as pb
from test_room import enter, joining, make_room, read, read_to_the_end, send

from coordinator.serving import combining
from coordinator.serving import room as room_module
from coordinator.session.decisions import Phase, StepClosing
from coordinator.session.refusal import Status
from coordinator.session.robust import StepOutcome, StepRule

LIMIT_S = 20.0
VALUES = {"a": 1.0, "b": 2.0, "c": 3.0}


def in_a_loop(test):
    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


@pytest.fixture
def gate(monkeypatch):
    """Hold each combination up until it is let go; all steps count as large."""
    monkeypatch.setattr(combining, "LARGE_ELEMENTS", 0)
    gate = Gate(StepRule.combine)
    monkeypatch.setattr(StepRule, "combine", lambda *arguments: gate.combine(*arguments))
    yield gate
    gate.open.set()


class Gate:
    def __init__(self, combine) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self._combine = combine

    def combine(self, *arguments):
        self.begun.set()
        assert self.open.wait(LIMIT_S)
        if self.failure is not None:
            raise self.failure
        return self._combine(*arguments)

    async def wait_until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, LIMIT_S)


def median_room(**settings):
    return make_room(devices=3, aggregator="median", **settings)[0]


def send_all(room, *outboxes) -> None:
    for outbox in outboxes:
        assert send(room, outbox, room.session.step.number, VALUES[outbox.device])


async def committed(room) -> None:
    async with asyncio.timeout(LIMIT_S):
        await room.settled()


def frame(room, outbox, step: int, value: float):
    return room.read_frame(outbox.device, gradient_frame(step, value, 1).SerializeToString())


@pytest.mark.parametrize(
    ("elements", "slices", "is_large"),
    [
        (30_000, 32, False),  # eight devices with a small model
        (300_000, 8, True),
        (160_000, 80_000, True),  # with 10,000 tensors of two elements: half a second
    ],
)
def test_many_small_tensors_take_as_long_as_a_few_large_ones(elements, slices, is_large):
    assert combining.is_large(StepClosing(0, StepOutcome, elements, slices)) == is_large


@in_a_loop
async def test_other_sessions_and_heartbeats_go_on_while_one_combines(gate):
    busy, other = median_room(), make_room(devices=1)[0]
    outboxes = enter(busy, "a", "b", "c")
    send_all(busy, *outboxes)
    await gate.wait_until_begun()
    assert busy.session.is_closing
    (alone,) = enter(other, "a")
    for step in range(3):
        assert send(other, alone, step, 1.0)
    assert other.session.step.number == 3
    beat = busy.read_frame("b", pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString())
    assert await busy.take(outboxes[1], beat)
    (answer,) = await read(busy, outboxes[1], 1)
    assert answer.HasField("heartbeat")
    assert busy.session.step.number == 0
    gate.open.set()
    await committed(busy)
    assert busy.session.step.number == 1
    (result,) = await read(busy, outboxes[0], 1)
    assert (result.commit.devices, np.frombuffer(result.slices[0].data, np.float32)[0]) == (3, 2.0)


@in_a_loop
async def test_a_leave_and_the_deadlines_wait_for_the_commit(gate):
    room = median_room(quorum=2, rejoin_deadline_s=0)
    outboxes = enter(room, "a", "b", "c")
    send_all(room, *outboxes)
    await gate.wait_until_begun()
    room.remove("a", "it broke the contract", 1.0, Status.INVALID_ARGUMENT)
    room.remove("b", "it broke the contract", 1.0, Status.INVALID_ARGUMENT)
    room.tick(1e9)
    assert set(room.session.members) == {"a", "b", "c"}
    assert room.session.phase is Phase.TRAINING
    gate.open.set()
    await committed(room)
    (commit,) = [event.step for event in room.chronicle.events.kept() if event.HasField("step")]
    assert (commit.commit.devices, list(commit.commit.left_out)) == (3, [])
    # Only now the step is over that they had a part in: without them no quorum is left for the next one.
    assert room.session.phase is Phase.ABORTED
    assert "device 'b' left in step 1" in room.session.reason
    assert outboxes[0].end == (Status.INVALID_ARGUMENT, "it broke the contract")


@in_a_loop
async def test_what_comes_for_a_step_that_closes_waits_and_counts_no_more(gate):
    room = median_room(quorum=2, step_deadline_s=5, lease_s=100)
    outboxes = enter(room, "a", "b", "c")
    send_all(room, *outboxes[:2])
    room.tick(6.0)  # "c" is late
    await gate.wait_until_begun()
    late = asyncio.create_task(room.take(outboxes[2], frame(room, outboxes[2], 0, 1e6)))
    entering = asyncio.create_task(room.settled())
    await asyncio.sleep(0)
    assert not late.done()
    assert not entering.done()
    gate.open.set()
    assert await asyncio.wait_for(late, LIMIT_S)
    await asyncio.wait_for(entering, LIMIT_S)
    (result,) = await read(room, outboxes[0], 1)
    assert np.frombuffer(result.slices[0].data, np.float32)[0] == 1.5
    assert (result.commit.devices, list(result.commit.left_out)) == (2, ["c"])
    assert (room.session.step.number, room.session.step.senders) == (1, set())


@in_a_loop
async def test_the_next_step_is_combined_with_what_has_waited(gate):
    room = median_room()
    outboxes = enter(room, "a", "b", "c")
    gate.open.set()
    for step in range(3):
        sent = [room.take(outbox, frame(room, outbox, step, VALUES[outbox.device])) for outbox in outboxes]
        assert await asyncio.gather(*sent) == [True] * 3
        await committed(room)
    assert room.session.step.number == 3


@in_a_loop
async def test_a_session_that_is_aborted_meanwhile_commits_nothing(gate):
    room = median_room()
    outboxes = enter(room, "a", "b", "c")
    send_all(room, *outboxes)
    await gate.wait_until_begun()
    room.abort("the operator ended it")
    gate.open.set()
    await committed(room)
    assert await read_to_the_end(room, outboxes[0]) == []
    assert outboxes[0].end == (Status.ABORTED, "session 's' aborted: the operator ended it")
    assert room.session.step.number == 0


@in_a_loop
async def test_a_suspended_session_leaves_the_step_to_be_done_again(gate):
    room = median_room()
    outboxes = enter(room, "a", "b", "c")
    send_all(room, *outboxes)
    await gate.wait_until_begun()
    room.remove("a", "it left", 1.0)
    room.suspend("the coordinator stops")
    gate.open.set()
    await committed(room)
    assert set(room.session.members) == {"a", "b", "c"}  # as it is recorded
    assert room.session.step.number == 0


@in_a_loop
async def test_a_rule_that_fails_ends_the_session_and_blames_no_device(gate):
    room = median_room()
    outboxes = enter(room, "a", "b", "c")
    gate.failure = MemoryError("no memory is left")
    gate.open.set()
    send_all(room, *outboxes)
    await committed(room)
    text = "session 's' aborted: the coordinator failed in step 0: no memory is left"
    assert [outbox.end for outbox in outboxes] == [(Status.ABORTED, text)] * 3


@in_a_loop
async def test_a_step_that_cannot_be_committed_ends_the_session_and_nobody_waits_for_ever(gate, monkeypatch):
    room = median_room(quorum=2, step_deadline_s=5)
    outboxes = enter(room, "a", "b", "c")
    send_all(room, *outboxes[:2])
    room.tick(6.0)
    await gate.wait_until_begun()
    late = asyncio.create_task(room.take(outboxes[2], frame(room, outboxes[2], 0, 1.0)))
    await asyncio.sleep(0)

    def fails(*_):
        raise KeyError("c")

    monkeypatch.setattr(room.session, "combined", fails)
    gate.open.set()
    assert not await asyncio.wait_for(late, LIMIT_S)
    text = "session 's' aborted: the coordinator failed in step 0: 'c'"
    assert [outbox.end for outbox in outboxes] == [(Status.ABORTED, text)] * 3


@in_a_loop
async def test_whoever_waited_longer_than_its_lease_keeps_its_place(gate, monkeypatch):
    room = median_room(quorum=2, step_deadline_s=5)
    outboxes = enter(room, "a", "b", "c")
    send_all(room, *outboxes[:2])
    room.tick(6.0)
    await gate.wait_until_begun()
    waits = asyncio.create_task(room.take(outboxes[2], frame(room, outboxes[2], 0, 1.0)))
    await asyncio.sleep(0)
    later = 1e6
    monkeypatch.setattr(room_module.time, "monotonic", lambda: later)
    gate.open.set()
    await asyncio.wait_for(waits, LIMIT_S)
    room.session.members.heard("a", later)
    room.session.members.heard("b", later)
    room.tick(later + 1)
    assert set(room.session.members) == {"a", "b", "c"}


@in_a_loop
async def test_a_device_that_joins_meanwhile_has_its_place_from_the_next_step_on(gate):
    room = median_room(max_devices=4)
    outboxes = enter(room, "a", "b", "c")
    send_all(room, *outboxes)
    await gate.wait_until_begun()

    async def enter_late():
        await room.settled()
        return room.join(joining("d"), 0.0)

    late = asyncio.create_task(enter_late())
    await asyncio.sleep(0)
    assert "d" not in room.session.members
    gate.open.set()
    await asyncio.wait_for(late, LIMIT_S)
    assert "d" in room.session.members
    assert room.session.step.number == 1
