"""Hostage steps: who begins every step and ends none is waited for less and less, and nobody honest pays for it."""

import io

import grpc
import numpy as np
import pytest
from bare_client import SPEC, Device, gradient_frame
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1 import exchange_pb2_grpc
from edgenewton.v1.framing import SliceKey
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from served import Served

from coordinator.session import decisions as d
from coordinator.session.lateness import MAX_DEADLINES, MAX_KNOWN, REGAIN_DEADLINES, Lateness
from coordinator.session.members import Joining, Standing
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution
from coordinator.telemetry.stored import dump_statistics, load_statistics
from coordinator.telemetry.terminal import TerminalView

KEY = SliceKey(0, 0)
DEADLINE_S = 10.0


@pytest.fixture
def served():
    served = Served()
    yield served
    served.stop()


def begin_only(step: int) -> pb.Frame:
    """Return a contribution without its end."""
    frame = gradient_frame(step, 1.0)
    frame.ClearField("contribution")
    return frame


def test_a_device_that_ends_no_step_holds_few_of_them_up(served):
    deadline_s, steps = 0.3, 40
    served.create("s", devices=3, quorum=2, step_deadline_s=deadline_s)
    with grpc.insecure_channel(served.server.address) as channel:
        stub = exchange_pb2_grpc.GradientExchangeStub(channel)
        hostage, a, b = (Device(stub, name) for name in ("hostage", "a", "b"))
        for step in range(steps):
            hostage.send(begin_only(step))
            for device in (a, b):
                device.send_gradient(step, 1.0)
            for device in (a, b, hostage):
                while not (frame := next(device.stream)).HasField("commit"):
                    pass
                assert frame.commit.devices == 2
        room = served.server.directory.find("s")
        held_up = room.chronicle.statistics.devices["hostage"].left_out
        assert 2 <= held_up <= 8  # of 40; all of them without the backoff
        # The page and the metrics show it.
        (told,) = [device for device in served.session()["devices"] if device["device"] == "hostage"]
        assert told["left_out"] == held_up
        assert told["set_aside"] == held_up - 1
        reasons = [incident["text"] for incident in served.session()["incidents"] if incident["kind"] == "healing"]
        assert any(
            reason.endswith(
                "it took longer than 0.3 s; it was so 2 times of late, and steps go on without it for 0.3 s"
            )
            for reason in reasons
        )
        metrics = served.metrics()
        assert metrics["edgenewton_coordinator_set_aside_total", ("session", "s")] == held_up - 1
        of_device = ("edgenewton_coordinator_device_set_aside_seconds", ("device", "hostage"), ("session", "s"))
        assert 0 <= metrics[of_device] < 64 * deadline_s


# ---------------------------------------------------------------- the state machine


def joining(device: str, **fields) -> Joining:
    return Joining(device, (SPEC,), {}, b"same", **fields)


def begun(*devices: str, **settings) -> Session:
    patient = {"lease_s": 80_000, "rejoin_deadline_s": 50, "step_deadline_s": DEADLINE_S}
    session = Session("s", SessionSettings(devices=len(devices), **(patient | settings)))
    for device in devices:
        session.join(joining(device), 0.0)
    session.take_decisions()
    return session


def begin(session: Session, device: str, now: float, value: float = 1.0) -> None:
    """Let a device send its slice of the step that is on."""
    if session.wants(device, session.step.number, 1, KEY, now):
        session.contribute(device, 1, KEY, np.full(6, value, np.float32))
    session.advance(now)


def contribute(session: Session, *devices: str, now: float, value: float = 1.0) -> None:
    step = session.step.number
    for device in devices:
        begin(session, device, now, value)
    for device in devices:
        session.complete(device, step, Contribution(1, 0.5), now)
        session.advance(now)


def hold_up(session: Session, hostage: str, *others: str, now: float) -> float:
    """Let a device begin a step and not end it; return when the step was over."""
    step = session.step.number
    begin(session, hostage, now)
    contribute(session, *others, now=now)
    while session.step.number == step:
        now += 1.0
        session.tick(now)
        assert session.phase is d.Phase.TRAINING
    return now


def taken(session: Session, kind: type) -> list:
    return [decision for decision in session.take_decisions() if isinstance(decision, kind)]


def test_being_late_once_costs_nothing():
    session = begun("slow", "a", "b", quorum=2)
    now = hold_up(session, "slow", "a", "b", now=0.0)
    assert now == DEADLINE_S
    begin(session, "slow", now)
    assert session.members["slow"].standing is Standing.ACTIVE  # waited for again from its first frame on
    (late,) = taken(session, d.DeviceHealing)
    assert late.wait_s == 0
    assert late.reason == "device 'slow' was left out of step 0: it took longer than 10 s"


def test_who_is_late_again_waits_longer_each_time_and_the_steps_do_not():
    session = begun("hostage", "a", "b", quorum=2)
    now, lost, steps = 0.0, 0.0, 0
    while now < 2_000:
        over = hold_up(session, "hostage", "a", "b", now=now)
        lost += over - now
        now = over + 1.0
        steps += 1
    waits = [late.wait_s for late in taken(session, d.DeviceHealing)]
    assert waits == [0, 10, 20, 40, 80, 160, 320, 640, 640]
    assert lost == len(waits) * DEADLINE_S
    assert steps > 1_500


def test_what_a_device_sends_in_time_counts_also_while_no_step_waits_for_it():
    session = begun("slow", "a", "b", quorum=2)
    now = hold_up(session, "slow", "a", "b", now=0.0)
    now = hold_up(session, "slow", "a", "b", now=now)
    session.take_decisions()
    contribute(session, "slow", now=now, value=4.0)
    contribute(session, "a", "b", now=now)
    assert session.members["slow"].standing is Standing.LAGGING
    (ready,) = taken(session, d.SliceReady)
    np.testing.assert_allclose(ready.values, 2.0)
    now += 2 * DEADLINE_S
    session.take_decisions()
    contribute(session, "slow", "a", "b", now=now)
    assert taken(session, d.DeviceRecovered) == [d.DeviceRecovered("slow", 3)]
    begin(session, "slow", now)
    contribute(session, "a", "b", now=now)
    assert session.step.number == 4  # waited for


def test_a_device_that_was_set_aside_counts_again_once_it_is_needed_for_the_quorum():
    session = begun("hostage", "a", "b", quorum=2)
    now = hold_up(session, "hostage", "a", "b", now=0.0)
    now = hold_up(session, "hostage", "a", "b", now=now)
    contribute(session, "hostage", "a", now=now)
    assert session.step.number == 2  # "b" is waited for
    session.remove("b", "its battery was empty", now)
    assert session.step.number == 3  # the other's contribution was there already
    assert session.members["hostage"].standing is Standing.ACTIVE
    contribute(session, "hostage", "a", now=now)
    assert session.step.number == 4


def test_a_step_whose_late_devices_leave_too_few_goes_on_with_one_that_was_set_aside():
    session = begun("hostage", "a", "b", quorum=2)
    now = hold_up(session, "hostage", "a", "b", now=0.0)
    now = hold_up(session, "hostage", "a", "b", now=now)
    contribute(session, "hostage", "a", now=now)
    begin(session, "b", now)  # and then it hangs
    assert session.step.number == 2
    session.tick(now + DEADLINE_S)
    (commit,) = taken(session, d.StepCommitted)[-1:]
    assert (commit.step, commit.devices, commit.left_out) == (2, 2, ("b",))
    assert session.members.standing(Standing.LAGGING) == ["b"]


def test_a_device_that_joins_again_is_no_other_one():
    session = begun("hostage", "a", "b", quorum=2)
    now = hold_up(session, "hostage", "a", "b", now=0.0)
    now = hold_up(session, "hostage", "a", "b", now=now)
    session.remove("hostage", "it left", now)
    session.join(joining("hostage", next_step=session.step.number), now)
    before = session.step.number
    assert hold_up(session, "hostage", "a", "b", now=now) == now
    assert session.step.number == before + 1


def test_a_hostage_keeps_no_session_from_its_end():
    session = begun("hostage", "a", "b", quorum=2, idle_deadline_s=100)
    now = hold_up(session, "hostage", "a", "b", now=0.0)
    now = hold_up(session, "hostage", "a", "b", now=now)
    begin(session, "hostage", now)
    for device in "ab":
        session.finish(device, now)
    assert [x.device for x in taken(session, d.DeviceRemoved)] == ["a", "b", "hostage"]
    session.tick(now + 50)  # it may come back so long, like any other
    assert (session.phase, session.reason) == (d.Phase.ENDED, "all devices have finished")


# ---------------------------------------------------------------- the counting


def test_good_behaviour_takes_one_time_back_after_another():
    lateness = Lateness(DEADLINE_S)
    assert [lateness.be_late("a", 0.0) for _ in range(4)] == [0, 10, 20, 40]
    now = 40.0
    for times in (3, 2, 1, 0):
        lateness.be_in_time(["a"], now)
        assert lateness.times("a") == times + 1
        now += REGAIN_DEADLINES * DEADLINE_S
        lateness.be_in_time(["a", "b"], now)
        assert lateness.times("a") == times
    assert lateness.be_late("a", now) == 0


@given(st.lists(st.floats(0, 3_000), max_size=60))
def test_in_the_long_run_no_device_costs_more_than_a_part_in_seventeen(pauses):
    """Whatever the pauses between its being late, in which it is in time."""
    lateness, now, lost = Lateness(DEADLINE_S), 0.0, 0.0
    for pause in [0.0, *pauses]:
        if lateness.has_to_wait("a", now):
            record = lateness._of["a"]
            now = record.until
        for part in range(11):
            lateness.be_in_time(["a"], now + pause * part / 10)
        now += pause + DEADLINE_S
        lost += DEADLINE_S
        lateness.be_late("a", now)
    few = MAX_DEADLINES.bit_length() + 2  # that many times it is late before the waits are long
    assert lost <= now / (REGAIN_DEADLINES + 1) + few * DEADLINE_S


def test_only_so_many_are_remembered():
    lateness = Lateness(DEADLINE_S)
    for number in range(MAX_KNOWN + 5):
        lateness.be_late(f"d{number}", 0.0)
    assert len(lateness._of) == MAX_KNOWN
    assert (lateness.times("d4"), lateness.times("d5")) == (0, 1)


# ---------------------------------------------------------------- what people see


def printed(view):
    console = Console(width=160, file=io.StringIO())
    console.print(view)
    return console.file.getvalue()


def test_it_is_shown_and_recorded():
    view = TerminalView()
    view.apply(pb.SessionEvent(time_s=4e9, joined=pb.DeviceJoined(device="hostage")))
    healing = pb.DeviceHealing(device="hostage", step=3, reason="late", wait_s=120)
    view.apply(pb.SessionEvent(time_s=4e9, healing=healing))
    assert "not waited for" in printed(view)
    statistics = view.statistics
    assert (statistics.set_aside, statistics.devices["hostage"].set_aside_s(4e9 + 20)) == (1, 100)
    again = load_statistics("s", dump_statistics(statistics))
    assert again.set_aside == 1
    assert again.devices["hostage"].set_aside_until == 4e9 + 120
    view.apply(pb.SessionEvent(time_s=4e9 + 1, recovered=pb.DeviceRecovered(device="hostage", step=4)))
    assert statistics.devices["hostage"].set_aside_s(4e9 + 2) == 0
    assert "not waited for" not in printed(view)
