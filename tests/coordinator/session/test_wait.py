"""For whom a session waits, and since when."""

import numpy as np
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.members import Joining, Standing
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution
from coordinator.session.wait import Wait

SPEC, KEY = TensorSpec("w", (4,)), SliceKey(0, 0)


def join(session, *devices, now=0.0):
    for device in devices:
        session.join(Joining(device, (SPEC,), {}, b"same"), now)
        session.members.connected(device, now)


def contribute(session, device, step, now, *, is_whole=True):
    if session.wants(device, step, 1, KEY, now):
        session.contribute(device, 1, KEY, np.ones(4, np.float32))
    if is_whole:
        session.complete(device, step, Contribution(1, 0.5), now)
        session.advance(now)


def begun(*devices, **settings):
    session = Session("s", SessionSettings(devices=len(devices), lease_s=10_000, step_deadline_s=100, **settings))
    join(session, *devices)
    return session


def test_before_the_first_step_nobody_knows_who_is_to_come():
    session = Session("s", SessionSettings(devices=3))
    assert session.wait == Wait((), None, 3)
    join(session, "a", now=5.0)
    assert session.wait == Wait((), 5.0, 2)


def test_a_session_that_goes_on_waits_for_whom_it_knows():
    session = begun("a", "b", "c")
    other = Session("s", SessionSettings(devices=3))
    other.restore(session.admission, 7, ["a", "b", "c"])
    join(other, "b", now=5.0)
    assert other.wait == Wait(("a", "c"), 5.0, 0)


def test_while_all_compute_nobody_is_held_up():
    session = begun("a", "b")
    assert session.wait == Wait(("a", "b"), 0.0, is_held_up=False)
    contribute(session, "a", 0, 3.0, is_whole=False)
    assert session.wait == Wait(("a", "b"), 3.0, is_held_up=False)


def test_a_step_waits_for_the_others_once_the_first_is_done():
    session = begun("a", "b", "c")
    contribute(session, "b", 0, 3.0)
    assert session.wait == Wait(("a", "c"), 3.0)
    contribute(session, "a", 0, 4.0)
    assert session.wait == Wait(("c",), 3.0)
    contribute(session, "c", 0, 9.0)
    assert session.step.number == 1
    assert session.wait == Wait(("a", "b", "c"), 9.0, is_held_up=False)


def test_a_step_does_not_wait_for_whom_it_goes_on_without():
    session = begun("a", "b", "c", quorum=2)
    contribute(session, "a", 0, 1.0)
    contribute(session, "b", 0, 1.0)
    session.tick(102.0)
    assert session.members["c"].standing is Standing.LAGGING
    contribute(session, "a", 1, 103.0)
    assert session.wait == Wait(("b",), 103.0)


def test_a_step_waits_for_those_that_catch_up_if_it_needs_them():
    session = begun("a", "b", "c", quorum=2)
    session.members["c"].standing = session.members["b"].standing = Standing.HEALING
    contribute(session, "a", 0, 1.0)
    assert session.wait == Wait(("b", "c"), 1.0)


def test_a_session_without_its_quorum_waits_for_whom_it_lost():
    session = begun("a", "b", "c")
    contribute(session, "c", 0, 5.0, is_whole=False)
    session.remove("b", "its lease ended", 20.0)
    assert session.wait == Wait(("b",), 5.0)
    contribute(session, "a", 0, 21.0)
    assert session.wait == Wait(("b",), 20.0)


def test_whoever_loses_its_place_was_waited_for_before():
    session = begun("a", "b")
    contribute(session, "a", 0, 3.0)
    session.remove("b", "its lease ended", 20.0)
    assert session.wait == Wait(("b",), 3.0)


def test_nobody_waits_once_it_is_over():
    session = begun("a")
    session.finish("a", 1.0)
    assert session.is_over
    assert session.wait is None
