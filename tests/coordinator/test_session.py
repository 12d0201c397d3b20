"""The session state machine, without gRPC and without waiting."""

import numpy as np
import pytest
from edgenewton.v1.fingerprint import TensorSpec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coordinator import session as s
from coordinator.refusal import RefusedError, Status
from coordinator.settings import SessionSettings
from coordinator.step import Contribution, Evaluation, SliceKey

SPECS = (TensorSpec("w", (4,)), TensorSpec("b", (2,)))
W, B = SliceKey(0, 0), SliceKey(1, 0)


def joining(device: str, **changes) -> s.Joining:
    values = {"fingerprint": SPECS, "options": {"lr": "0.1"}, "weights_digest": b"same"}
    return s.Joining(device=device, **(values | changes))


def begun(*devices: str, **settings) -> s.Session:
    session = s.Session("leaves", SessionSettings(devices=len(devices), **settings))
    for device in devices:
        session.join(joining(device), now=0.0)
    session.take_decisions()
    return session


def contribute(session: s.Session, device: str, value: float = 1.0, samples: int = 1, step: int = 0, now: float = 1.0):
    session.contribute(device, step, samples, W, np.full(4, value, np.float32), now)
    session.contribute(device, step, samples, B, np.full(2, -value, np.float32), now)
    session.complete(device, step, Contribution(samples, loss=value), now)
    session.advance(now)


def of_type(session: s.Session, kind: type) -> list:
    return [decision for decision in session.take_decisions() if isinstance(decision, kind)]


def test_session_begins_when_all_have_joined():
    session = s.Session("leaves", SessionSettings(devices=2))
    assert session.join(joining("a"), 0.0).snapshot is s.SnapshotAction.UPLOAD
    assert session.phase is s.Phase.GATHERING
    assert session.join(joining("b"), 0.0).snapshot is s.SnapshotAction.NONE
    assert session.phase is s.Phase.TRAINING


def test_other_weights_are_replaced_by_those_of_the_first_device():
    session = s.Session("leaves", SessionSettings(devices=2))
    session.join(joining("a"), 0.0)
    assert session.join(joining("b", weights_digest=b"other"), 0.0).snapshot is s.SnapshotAction.DOWNLOAD


def test_mean_is_weighted_by_samples_and_committed_once_all_are_complete():
    session = begun("a", "b")
    contribute(session, "a", value=1.0, samples=3)
    assert not of_type(session, s.SliceReady | s.StepCommitted)
    contribute(session, "b", value=5.0, samples=1)
    decisions = session.take_decisions()
    ready = {d.key: d.values for d in decisions if isinstance(d, s.SliceReady)}
    assert np.array_equal(ready[W], np.full(4, 2.0))
    assert np.array_equal(ready[B], np.full(2, -2.0))
    (commit,) = [d for d in decisions if isinstance(d, s.StepCommitted)]
    assert (commit.step, commit.samples, commit.devices, commit.loss) == (0, 4, 2, 2.0)
    assert isinstance(decisions[-1], s.StepCommitted)
    assert session.step.number == 1


def test_a_slice_is_ready_before_the_step_is_complete():
    session = begun("a", "b")
    for device in ("a", "b"):
        session.contribute(device, 0, 1, B, np.ones(2, np.float32), 1.0)
    session.advance(1.0)
    (ready,) = of_type(session, s.SliceReady)
    assert ready.key == B


def test_evaluations_are_added_up():
    session = begun("a", "b")
    for device, correct in (("a", 3), ("b", 5)):
        session.complete(device, 0, Contribution(1, 0.0, Evaluation(correct, 10, loss=correct / 10)), 1.0)
    session.advance(1.0)
    (commit,) = of_type(session, s.StepCommitted)
    assert commit.evaluation == Evaluation(8, 20, pytest.approx(0.4))


@given(st.data())
def test_any_interleaving_gives_the_mean_of_all(data):
    values = {d: data.draw(st.floats(-10, 10, width=32)) for d in "abc"}
    samples = {d: data.draw(st.integers(1, 50)) for d in "abc"}
    events = data.draw(st.permutations([(d, key) for d in "abc" for key in (W, B)]))
    session = begun(*"abc")
    left = dict.fromkeys("abc", 2)
    for device, key in events:
        size = SPECS[key.tensor].size
        session.contribute(device, 0, samples[device], key, np.full(size, values[device], np.float32), 1.0)
        left[device] -= 1
        if not left[device]:
            session.complete(device, 0, Contribution(samples[device], 0.0), 1.0)
        session.advance(1.0)
    decisions = session.take_decisions()
    ready = {d.key: d.values for d in decisions if isinstance(d, s.SliceReady)}
    mean = sum(values[d] * samples[d] for d in "abc") / sum(samples.values())
    assert ready.keys() == {W, B}
    np.testing.assert_allclose(ready[W], mean, rtol=1e-5, atol=1e-5)
    assert sum(isinstance(d, s.StepCommitted) for d in decisions) == 1


@pytest.mark.parametrize(
    ("device", "changes", "status", "message"),
    [
        ("a", {}, Status.ALREADY_EXISTS, "a live device with this id"),
        ("b", {"protocol_version": 7}, Status.FAILED_PRECONDITION, "speaks protocol version 7 and the coordinator"),
        ("b", {"fingerprint": (SPECS[0], TensorSpec("b", (3,)))}, Status.FAILED_PRECONDITION, "'b', 2 float32 where"),
        ("b", {"options": {"lr": "0.2"}}, Status.FAILED_PRECONDITION, "'lr' is 0.1 in the session but 0.2"),
    ],
)
def test_joins_that_do_not_fit_are_refused(device, changes, status, message):
    session = s.Session("leaves", SessionSettings(devices=2))
    session.join(joining("a"), 0.0)
    with pytest.raises(RefusedError, match=message) as refusal:
        session.join(joining(device, **changes), 0.0)
    assert refusal.value.status is status
    assert list(session.members) == ["a"]


def test_nobody_joins_a_session_that_has_begun_or_ended():
    session = begun("a", "b")
    with pytest.raises(RefusedError, match="began with 2 devices and is at step 0"):
        session.join(joining("c"), 0.0)
    session.abort("the operator said so")
    with pytest.raises(RefusedError, match="is aborted: the operator said so"):
        session.join(joining("c"), 0.0)


@pytest.mark.parametrize("step", [1, 17])
def test_frames_of_another_step_are_refused(step):
    session = begun("a", "b")
    with pytest.raises(RefusedError, match=f"device 'a' sent a frame of step {step}; the session is at step 0"):
        contribute(session, "a", step=step)


def test_what_a_device_sends_twice_is_refused_by_name():
    session = begun("a", "b")
    session.contribute("a", 0, 1, W, np.ones(4, np.float32), 1.0)
    with pytest.raises(RefusedError, match="device 'a', step 0, gradient of 'w', 4 float32: sent the slice at 0 twice"):
        session.contribute("a", 0, 1, W, np.ones(4, np.float32), 1.0)
    with pytest.raises(RefusedError, match="claims 2 samples after 1"):
        session.contribute("a", 0, 2, B, np.ones(2, np.float32), 1.0)
    with pytest.raises(RefusedError, match="batch of 0 samples"):
        session.contribute("b", 0, 0, B, np.ones(2, np.float32), 1.0)


def test_a_device_that_sends_other_tensors_than_the_others_is_refused():
    session = begun("a", "b")
    contribute(session, "a")
    session.contribute("b", 0, 1, W, np.ones(4, np.float32), 1.0)
    with pytest.raises(RefusedError, match=r"device 'b', step 0.*differ in whether they sent the gradient of 'b'"):
        session.complete("b", 0, Contribution(1, 0.0), 1.0)


def test_abort_releases_every_device_with_the_reason():
    session = begun("a", "b")
    session.abort("flwr stop")
    decisions = session.take_decisions()
    removed = {d.device: d for d in decisions if isinstance(d, s.DeviceRemoved)}
    assert removed.keys() == {"a", "b"}
    assert all(d.status is Status.ABORTED and "flwr stop" in d.reason for d in removed.values())
    assert decisions[-1] == s.PhaseChanged(s.Phase.ABORTED, "flwr stop")


def test_too_few_devices_by_the_join_deadline_abort():
    session = s.Session("leaves", SessionSettings(devices=3, join_deadline_s=10))
    session.tick(1000.0)
    assert session.phase is s.Phase.GATHERING  # nobody waits yet
    session.join(joining("a"), 1000.0)
    session.tick(1009.9)
    assert session.phase is s.Phase.GATHERING
    session.tick(1010.0)
    assert session.phase is s.Phase.ABORTED
    assert session.reason == "1 of 3 devices joined within 10 s: a"


def test_the_step_deadline_leaves_stragglers_out_if_the_quorum_is_there():
    session = begun("a", "b", "c", quorum=2, step_deadline_s=5)
    contribute(session, "a", value=1.0, samples=1, now=10.0)
    contribute(session, "b", value=4.0, samples=2, now=11.0)
    session.contribute("c", 0, 5, B, np.full(2, -10.0, np.float32), 12.0)
    session.tick(14.9)
    assert "c" in session.members
    session.tick(15.0)
    decisions = session.take_decisions()
    (removed,) = [d for d in decisions if isinstance(d, s.DeviceRemoved)]
    assert (removed.device, removed.status) == ("c", Status.DEADLINE_EXCEEDED)
    ready = {d.key: d.values for d in decisions if isinstance(d, s.SliceReady)}
    assert np.allclose(ready[W], 3.0)  # reweighted by the samples that arrived
    (commit,) = [d for d in decisions if isinstance(d, s.StepCommitted)]
    assert (commit.devices, commit.left_out) == (2, ("c",))


def test_the_step_deadline_aborts_without_the_quorum_and_names_who_is_missing():
    session = begun("a", "b", step_deadline_s=5)
    contribute(session, "a", now=10.0)
    session.tick(15.0)
    assert session.phase is s.Phase.ABORTED
    assert "step 0: 1 devices contributed within 5 s where at least 2 are needed; waited for 'b'" in session.reason


def test_silence_of_all_devices_ends_the_session():
    session = begun("a", "b", idle_deadline_s=100)
    session.tick(99.0)
    assert session.phase is s.Phase.TRAINING
    session.tick(100.0)
    assert session.phase is s.Phase.ABORTED
    assert "no device sent anything for 100 s" in session.reason


def test_a_lost_device_ends_a_session_that_needs_it_and_not_one_that_does_not():
    needed = begun("a", "b")
    needed.remove("b", "its connection broke", 1.0)
    assert needed.phase is s.Phase.ABORTED
    assert "device 'b' left in step 0: its connection broke; 1 devices remain where at least 2" in needed.reason
    spared = begun("a", "b", quorum=1)
    contribute(spared, "a", value=3.0)
    spared.remove("b", "its connection broke", 1.0)
    decisions = spared.take_decisions()
    (commit,) = [d for d in decisions if isinstance(d, s.StepCommitted)]
    assert (commit.devices, commit.left_out) == (1, ("b",))


def test_a_device_that_leaves_while_gathering_can_come_back():
    session = s.Session("leaves", SessionSettings(devices=2))
    session.join(joining("a"), 0.0)
    session.remove("a", "restarted", 1.0)
    session.join(joining("a"), 2.0)
    session.join(joining("b"), 2.0)
    assert session.phase is s.Phase.TRAINING


def test_finishing_never_aborts_but_others_cannot_go_on_alone():
    session = begun("a", "b")
    for device in ("a", "b"):
        contribute(session, device)
    session.finish("a", 2.0)
    assert session.phase is s.Phase.TRAINING
    with pytest.raises(RefusedError, match="device 'b' goes on with step 1, but others have finished"):
        contribute(session, "b", step=1)
    session.finish("b", 3.0)
    assert (session.phase, session.reason) == (s.Phase.ENDED, "all devices have finished")


@pytest.mark.parametrize(
    "values",
    [{"devices": 0}, {"quorum": 5}, {"codec": "zip"}, {"step_deadline_s": 0}, {"frame_bytes": 1}, {"colour": 1}],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        SessionSettings(**values)
