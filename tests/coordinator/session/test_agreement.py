"""What all devices of a step must do alike is decided by most of them, whoever is first."""

import itertools
import re

import numpy as np
import pytest
from at_once import AtOnceSession
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session import decisions as d
from coordinator.session.members import Joining, Standing
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution

SPECS = (TensorSpec("w", (4,)), TensorSpec("b", (2,)))
W, B = SliceKey(0, 0), SliceKey(1, 0)
DEADLINE_S = 10.0

OTHER_RATE = {"hyperparameters": {"lr": 0.5}}
OTHER_BATCHES = {"batches": 3}
MORE_SLICES = {"keys": (W, B)}
NO_SLICES = {"keys": ()}
DIFFERENCES = {
    "lr": (OTHER_RATE, r"its option 'lr' is 0.5 where it is 0.1 on device '.' and 2 others; all devices must take"),
    "batches": (OTHER_BATCHES, r"it trained 3 batches since the last step, and device '.' and 2 others 1; all devices"),
    "more": (MORE_SLICES, r"it and device '.' and 2 others differ in whether they sent the gradient of 'b', 2 float32"),
    "none": (NO_SLICES, r"it and device '.' and 2 others differ in whether they sent the gradient of 'w', 4 float32"),
}


def joining(device: str, **fields) -> Joining:
    return Joining(device, SPECS, {}, b"same", **fields)


def begun(*devices: str, **settings) -> Session:
    patient = {"lease_s": 1_000, "rejoin_deadline_s": 100, "step_deadline_s": DEADLINE_S}
    session = AtOnceSession("s", SessionSettings(devices=len(devices), **(patient | settings)))
    for device in devices:
        session.join(joining(device), 0.0)
    session.take_decisions()
    return session


def complete(session: Session, device: str, now: float = 0.0, *, keys=(W,), value: float = 1.0, **says) -> None:
    """Do what the servicer does with a whole contribution."""
    step = session.step.number
    contribution = Contribution(1, value, **({"hyperparameters": {"lr": 0.1}} | says))
    try:
        for key in keys:
            if session.wants(device, step, 1, key, now):
                session.contribute(device, 1, key, np.full(SPECS[key.tensor].size, value, np.float32))
        session.complete(device, step, contribution, now)
    except RefusedError as error:
        session.remove(device, error.reason, now, error.status)
    session.advance(now)


def taken(session: Session, kind: type) -> list:
    return [decision for decision in session.take_decisions() if isinstance(decision, kind)]


@pytest.mark.parametrize("aggregator", ["mean", "median"])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(("says", "message"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_one_that_differs_is_refused_wherever_it_comes(says, message, place, aggregator):
    session = begun("hostile", "a", "b", "c", quorum=3, aggregator=aggregator)
    order = ["a", "b", "c"]
    order.insert(place, "hostile")
    for device in order:
        complete(session, device, **(says if device == "hostile" else {}))
    decisions = session.take_decisions()
    (removed,) = [decision for decision in decisions if isinstance(decision, d.DeviceRemoved)]
    assert (removed.device, removed.status) == ("hostile", Status.INVALID_ARGUMENT)
    assert re.match(f"device 'hostile', step 0: {message}", removed.reason)
    (commit,) = [decision for decision in decisions if isinstance(decision, d.StepCommitted)]
    assert (commit.devices, commit.batches, commit.left_out) == (3, 1, ("hostile",))
    assert [decision.key for decision in decisions if isinstance(decision, d.SliceReady)] == [W]
    for device in "abc":
        complete(session, device)
    assert session.step.number == 2


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("hhaaa"))), ids="".join)
def test_two_that_come_first_do_not_outvote_three(order):
    session = begun("h0", "h1", "a0", "a1", "a2", quorum=3)
    for kind, device in zip(order, _numbered(order), strict=True):
        complete(session, device, **(OTHER_RATE if kind == "h" else {}))
    (commit,) = taken(session, d.StepCommitted)
    assert commit.left_out == ("h0", "h1")


def _numbered(order) -> list[str]:
    return [f"{kind}{order[:index].count(kind)}" for index, kind in enumerate(order)]


def test_nothing_is_committed_and_nobody_refused_before_it_can_be_said():
    session = begun("hostile", "a", "b", "c", quorum=3)
    complete(session, "hostile", **OTHER_RATE)
    complete(session, "a")
    complete(session, "b")  # two against one; "c" could make it two against two
    assert not taken(session, d.DeviceRemoved | d.StepCommitted)
    session.remove("c", "its battery was empty", 1.0)
    assert [removed.device for removed in taken(session, d.DeviceRemoved)] == ["c", "hostile"]


def test_at_the_steps_deadline_those_decide_that_have_come():
    session = begun("hostile", "a", "b", "slow", "slower", quorum=2)
    complete(session, "hostile", **OTHER_RATE)
    complete(session, "a")
    complete(session, "b")
    session.tick(DEADLINE_S)
    decisions = session.take_decisions()
    assert [x.device for x in decisions if isinstance(x, d.DeviceRemoved)] == ["hostile"]
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    assert (commit.devices, commit.left_out) == (2, ("hostile", "slow", "slower"))
    assert session.members.standing(Standing.LAGGING) == ["slow", "slower"]


def test_after_its_deadline_a_step_waits_for_a_vote_if_too_few_agree():
    session = begun("hostile", "a", "b", quorum=2)
    complete(session, "hostile", **OTHER_RATE)
    complete(session, "a")
    session.tick(DEADLINE_S + 1)
    assert not taken(session, d.DeviceRemoved)
    complete(session, "b", now=DEADLINE_S + 2)
    assert [removed.device for removed in taken(session, d.DeviceRemoved)] == ["hostile"]
    assert session.step.number == 1


def test_a_step_in_which_too_few_agree_does_not_wait_for_ever():
    session = begun("hostile", "a", "b", quorum=2)
    complete(session, "hostile", now=1.0, **OTHER_RATE)
    complete(session, "a", now=1.0)
    session.tick(1.0 + DEADLINE_S + 100)
    assert session.phase is d.Phase.ABORTED
    assert session.reason.startswith("step 0: 1 devices contributed within 10 s")
    assert session.reason.endswith("waited for 'b'")


def test_of_two_the_later_one_is_refused_if_nothing_is_known_yet():
    session = begun("a", "b", quorum=1)
    complete(session, "a")
    complete(session, "b", **OTHER_RATE)
    (removed,) = taken(session, d.DeviceRemoved)
    assert removed.device == "b"
    assert "its option 'lr' is 0.5 where it is 0.1 on device 'a'; all devices" in removed.reason


@pytest.mark.parametrize("says", [says for says, _ in DIFFERENCES.values()], ids=DIFFERENCES)
def test_of_two_the_one_that_differs_from_the_last_step_is_refused(says):
    session = begun("hostile", "a", quorum=1)
    for device in ("hostile", "a"):
        complete(session, device)
    session.take_decisions()
    complete(session, "hostile", **says)
    complete(session, "a")
    (removed,) = taken(session, d.DeviceRemoved)
    assert removed.device == "hostile"
    assert session.step.number == 2


def test_a_schedule_is_followed_by_all_though_the_last_step_was_another():
    session = begun("outdated", "a", "b", quorum=2)
    for device in ("outdated", "a", "b"):
        complete(session, device)
    complete(session, "outdated")
    for device in "ab":
        complete(session, device, hyperparameters={"lr": 0.01}, batches=4)
    assert [removed.device for removed in taken(session, d.DeviceRemoved)] == ["outdated"]
    assert session.step.number == 5


def test_a_device_that_catches_up_is_heard_if_equally_many_say_two_things():
    session = begun("hostile", "a", "b", quorum=2)
    session.members["b"].standing = Standing.LAGGING
    complete(session, "hostile", **OTHER_RATE)
    complete(session, "a")
    assert not taken(session, d.DeviceRemoved | d.StepCommitted)
    complete(session, "b")
    assert [removed.device for removed in taken(session, d.DeviceRemoved)] == ["hostile"]


def test_one_device_has_one_vote_under_however_many_names():
    session = begun("a", "b", "c", quorum=1, max_devices=5)
    for number in range(4):
        session.join(joining(f"h{number}", next_step=0), 0.0)
        complete(session, f"h{number}", **OTHER_RATE)
        session.remove(f"h{number}", "it left", 0.0)
    for device in "abc":
        complete(session, device)
    (commit,) = taken(session, d.StepCommitted)
    assert session.members.keys() == {"a", "b", "c"}
    assert commit.devices == 3  # nothing that those said who left


def test_who_was_refused_may_come_back_and_do_as_the_others_do():
    session = begun("hostile", "a", "b", "c", quorum=3)
    complete(session, "hostile", **OTHER_RATE)
    for device in "ab":
        complete(session, device)
    session.remove("hostile", "its connection broke", 1.0)
    session.join(joining("hostile", next_step=0), 1.0)
    complete(session, "hostile")  # its latest word counts
    complete(session, "c")
    (commit,) = taken(session, d.StepCommitted)
    assert commit.devices == 4


def test_what_devices_say_while_the_session_gathers_is_decided_once_all_have_come():
    session = AtOnceSession("s", SessionSettings(devices=3, quorum=2))
    for device in ("hostile", "a"):
        session.join(joining(device), 0.0)
    complete(session, "hostile", **OTHER_RATE)
    complete(session, "a")
    session.join(joining("b"), 0.0)
    complete(session, "b")
    assert [removed.device for removed in taken(session, d.DeviceRemoved)] == ["hostile"]
    assert session.step.number == 1


def test_rounding_is_no_dispute():
    session = begun("a", "b", "c", quorum=2)
    for device, error in (("a", 0.9e-6), ("b", 0.0), ("c", -0.9e-6)):  # "a" and "c" are too far apart
        complete(session, device, hyperparameters={"lr": 0.1 * (1 + error)})
    (commit,) = taken(session, d.StepCommitted)
    assert commit.devices == 3
