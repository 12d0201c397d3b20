"""The session state machine, without gRPC and without waiting."""

import math

import numpy as np
import pytest
import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coordinator.session import decisions as d
from coordinator.session.members import Joining, Standing
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution
from edge_client.sync.sketching import sketch_of

SPECS = (TensorSpec("w", (4,)), TensorSpec("b", (2,)))
W, B = SliceKey(0, 0), SliceKey(1, 0)


def joining(device: str, **changes) -> Joining:
    values = {"fingerprint": SPECS, "options": {"lr": "0.1"}, "weights_digest": b"same"}
    return Joining(device=device, **(values | changes))


SETTINGS = {"lease_s": 10_000, "rejoin_deadline_s": 0}


def begun(*devices: str, **settings) -> Session:
    session = Session("leaves", SessionSettings(devices=len(devices), **(SETTINGS | settings)))
    for device in devices:
        session.join(joining(device), now=0.0)
        session.members.connected(device, now=0.0)
    session.take_decisions()
    return session


def send(session: Session, device: str, step: int, samples: int | None, key: SliceKey, values, now: float) -> None:
    if session.wants(device, step, samples, key, now):
        session.contribute(device, samples, key, values)


def contribute(session: Session, device: str, value=1.0, samples: int | None = 1, step: int = 0, now: float = 1.0):
    send(session, device, step, samples, W, np.full(4, value, np.float32), now)
    send(session, device, step, samples, B, np.full(2, -value, np.float32), now)
    session.complete(device, step, Contribution(samples, loss=value), now)
    session.advance(now)


def sketch(value: float, seed: int = 0):
    """Return that of a layer of which the first weight has a value."""
    return sketch_of({"output.weight": torch.tensor([value, 2.0, -5.0, 1.0])}, seed)


def contribute_weights(session: Session, device: str, value: float, step: int = 0, samples: int | None = 1) -> None:
    """Complete a contribution with a sketch of the weights."""
    send(session, device, step, samples, W, np.ones(4, np.float32), 1.0)
    session.complete(device, step, Contribution(samples, 0.0, sketch=sketch(value, step)), 1.0)


def of_type(session: Session, kind: type) -> list:
    return [decision for decision in session.take_decisions() if isinstance(decision, kind)]


def test_session_begins_when_all_have_joined():
    session = Session("leaves", SessionSettings(devices=2))
    assert session.join(joining("a"), 0.0).standing is Standing.ACTIVE
    assert session.phase is d.Phase.GATHERING
    assert session.join(joining("b"), 0.0).standing is Standing.ACTIVE
    assert session.phase is d.Phase.TRAINING


def test_other_weights_are_replaced_by_those_of_the_first_device():
    session = Session("leaves", SessionSettings(devices=2))
    session.join(joining("a"), 0.0)
    assert session.join(joining("b", weights_digest=b"other"), 0.0).standing is Standing.HEALING


def test_mean_is_weighted_by_samples_and_committed_once_all_are_complete():
    session = begun("a", "b")
    contribute(session, "a", value=1.0, samples=3)
    assert not of_type(session, d.SliceReady | d.StepCommitted)
    contribute(session, "b", value=5.0, samples=1)
    decisions = session.take_decisions()
    ready = {x.key: x.values for x in decisions if isinstance(x, d.SliceReady)}
    assert np.array_equal(ready[W], np.full(4, 2.0))
    assert np.array_equal(ready[B], np.full(2, -2.0))
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    assert (commit.step, commit.samples, commit.devices, commit.loss) == (0, 4, 2, 2.0)
    assert isinstance(decisions[-1], d.StepCommitted)
    assert session.step.number == 1


def test_a_slice_is_ready_before_the_step_is_complete():
    session = begun("a", "b")
    for device in ("a", "b"):
        send(session, device, 0, 1, B, np.ones(2, np.float32), 1.0)
    session.advance(1.0)
    (ready,) = of_type(session, d.SliceReady)
    assert ready.key == B


def test_a_step_that_is_released_as_a_whole_sends_nothing_before_it_commits():
    session = begun("a", "b", "c", quorum=2, release="step", step_deadline_s=5)
    contribute(session, "a", value=1.0)
    for device in ("b", "c"):
        send(session, device, 0, 1, B, np.full(2, -3.0, np.float32), 1.0)
    session.advance(1.0)
    assert not of_type(session, d.SliceReady)  # slice by slice, B would leave now
    send(session, "b", 0, 1, W, np.full(4, 3.0, np.float32), 1.0)
    session.complete("b", 0, Contribution(1, 3.0), 1.0)
    session.advance(1.0)
    assert not of_type(session, d.SliceReady)
    session.tick(7.0)  # the straggler is left out
    decisions = session.take_decisions()
    ready = {x.key: x.values for x in decisions if isinstance(x, d.SliceReady)}
    assert np.allclose(ready[W], 2.0)
    assert np.allclose(ready[B], (-1 - 3 - 3) / 3)
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    assert (commit.devices, commit.left_out) == (2, ("c",))
    assert isinstance(decisions[-1], d.StepCommitted)


@given(st.permutations([("a", 0.1, 3), ("b", 0.7, 5), ("c", 1e-9, 1), ("d", -0.3, 7), ("e", 3e8, 2)]))
def test_what_is_told_and_recorded_does_not_depend_on_who_is_first(order):
    def commit_of(order) -> tuple[d.StepCommitted, bytes]:
        session = begun(*"abcde")
        for device, loss, samples in order:
            send(session, device, 0, samples, W, np.full(4, loss, np.float32), 1.0)
            session.complete(device, 0, Contribution(samples, loss, Evaluation(1, samples, loss)), 1.0)
        session.advance(1.0)
        decisions = session.take_decisions()
        (ready,) = [x for x in decisions if isinstance(x, d.SliceReady)]
        (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
        return commit, ready.values.tobytes()

    assert commit_of(order) == commit_of(sorted(order))


def test_an_even_vote_on_the_weights_does_not_depend_on_who_is_first():
    def healing(*order: str) -> list[str]:
        session = begun(*"abcd")
        for device in order:
            contribute_weights(session, device, 1.0 if device in "ab" else 2.0)
        session.advance(1.0)
        return [x.device for x in of_type(session, d.DeviceHealing)]

    assert healing(*"abcd") == healing(*"dcba") == ["c", "d"]


def test_evaluations_are_added_up():
    session = begun("a", "b")
    for device, correct in (("a", 3), ("b", 5)):
        session.complete(device, 0, Contribution(1, 0.0, Evaluation(correct, 10, loss=correct / 10)), 1.0)
    session.advance(1.0)
    (commit,) = of_type(session, d.StepCommitted)
    assert commit.evaluation == Evaluation(8, 20, pytest.approx(0.4))


@given(st.data())
def test_any_interleaving_gives_the_mean_of_all(data):
    values = {name: data.draw(st.floats(-10, 10, width=32)) for name in "abc"}
    samples = {name: data.draw(st.integers(1, 50)) for name in "abc"}
    events = data.draw(st.permutations([(name, key) for name in "abc" for key in (W, B)]))
    session = begun(*"abc")
    left = dict.fromkeys("abc", 2)
    for device, key in events:
        size = SPECS[key.tensor].size
        send(session, device, 0, samples[device], key, np.full(size, values[device], np.float32), 1.0)
        left[device] -= 1
        if not left[device]:
            session.complete(device, 0, Contribution(samples[device], 0.0), 1.0)
        session.advance(1.0)
    decisions = session.take_decisions()
    ready = {x.key: x.values for x in decisions if isinstance(x, d.SliceReady)}
    mean = sum(values[name] * samples[name] for name in "abc") / sum(samples.values())
    assert ready.keys() == {W, B}
    np.testing.assert_allclose(ready[W], mean, rtol=1e-5, atol=1e-5)
    assert sum(isinstance(x, d.StepCommitted) for x in decisions) == 1


@pytest.mark.parametrize(
    ("device", "changes", "status", "message"),
    [
        ("a", {}, Status.ALREADY_EXISTS, "a live device with this id"),
        ("b", {"fingerprint": (SPECS[0], TensorSpec("b", (3,)))}, Status.FAILED_PRECONDITION, "'b', 2 float32 where"),
        ("b", {"options": {"lr": "0.2"}}, Status.FAILED_PRECONDITION, "'lr' is 0.1 in the session but 0.2"),
    ],
)
def test_joins_that_do_not_fit_are_refused(device, changes, status, message):
    session = Session("leaves", SessionSettings(devices=2))
    session.join(joining("a"), 0.0)
    session.members.connected("a", 0.0)
    with pytest.raises(RefusedError, match=message) as refusal:
        session.join(joining(device, **changes), 0.0)
    assert refusal.value.status is status
    assert list(session.members) == ["a"]


def test_no_place_is_left_and_nobody_joins_what_has_ended():
    session = begun("a", "b")
    with pytest.raises(RefusedError, match="all its 2 places are taken") as refusal:
        session.join(joining("c"), 0.0)
    assert refusal.value.status is Status.RESOURCE_EXHAUSTED
    session.abort("the operator said so")
    with pytest.raises(RefusedError, match="is aborted: the operator said so"):
        session.join(joining("c"), 0.0)


def test_devices_that_come_later_take_places_up_to_max_devices():
    session = begun("a", "b", max_devices=3)
    session.join(joining("c"), 1.0)
    with pytest.raises(RefusedError, match="all its 3 places are taken") as refusal:
        session.join(joining("d"), 1.0)
    assert refusal.value.status is Status.RESOURCE_EXHAUSTED
    session.remove("b", "it left", 2.0)
    session.join(joining("d"), 2.0)
    assert list(session.members) == ["a", "c", "d"]


def test_a_model_over_the_limit_is_refused():
    session = Session("leaves", SessionSettings(devices=2, max_model_bytes=23))
    with pytest.raises(RefusedError, match="its tensors take 24 bytes in all; at most 23") as refusal:
        session.join(joining("a"), 0.0)
    assert refusal.value.status is Status.RESOURCE_EXHAUSTED


def test_a_device_that_does_not_know_the_codec_is_refused():
    session = Session("leaves", SessionSettings(devices=2, codec="topk"))
    with pytest.raises(RefusedError, match="its codec is topk, which the device does not know"):
        session.join(joining("a"), 0.0)


@pytest.mark.parametrize("step", [1, 17])
def test_frames_of_another_step_are_refused(step):
    session = begun("a", "b")
    with pytest.raises(RefusedError, match=f"device 'a' sent a frame of step {step}; the session is at step 0"):
        contribute(session, "a", step=step)


def test_what_a_device_sends_twice_is_refused_by_name():
    session = begun("a", "b")
    send(session, "a", 0, 1, W, np.ones(4, np.float32), 1.0)
    with pytest.raises(RefusedError, match="device 'a', step 0: the gradient of 'w', 4 float32: sent the slice at 0"):
        send(session, "a", 0, 1, W, np.ones(4, np.float32), 1.0)
    with pytest.raises(RefusedError, match="claims 2 samples after 1"):
        send(session, "a", 0, 2, B, np.ones(2, np.float32), 1.0)
    with pytest.raises(RefusedError, match="batch of 0 samples"):
        send(session, "b", 0, 0, B, np.ones(2, np.float32), 1.0)


def complete(session: Session, device: str, step: int = 0, **hyperparameters) -> None:
    send(session, device, step, 1, W, np.ones(4, np.float32), 1.0)
    send(session, device, step, 1, B, np.ones(2, np.float32), 1.0)
    session.complete(device, step, Contribution(1, 0.0, hyperparameters=hyperparameters), 1.0)
    session.advance(1.0)


@pytest.mark.parametrize(
    ("differing", "message"),
    [
        (
            {"lr": 0.05, "momentum": 0.9},
            "its option 'lr' is 0.05 where it is 0.1 on device 'b' and 1 other; all devices must take",
        ),
        ({"lr": 0.1, "momentum": 0.900001}, "its option 'momentum' is 0.900001 where it is 0.9 on device 'b'"),
        ({"lr": 0.1}, "its option 'momentum' is not set where it is 0.9 on device 'b'"),
        ({"damping": 1.0, "lr": 0.1, "momentum": 0.9}, "its option 'damping' is 1 where it is not set on device 'b'"),
        ({"lr": 0.0, "momentum": 0.9}, "its option 'lr' is 0 where it is 0.1 on device 'b'"),
    ],
)
def test_a_step_with_other_hyperparameters_is_refused_by_name(differing, message):
    session = begun("a", "b", "c", "d", quorum=3)
    complete(session, "a")  # an older device, which does not tell them
    complete(session, "b", lr=0.1, momentum=0.9)
    complete(session, "c", **differing)
    assert "c" in session.members  # one against one: the step waits
    complete(session, "d", lr=0.1 * (1 + 1e-9), momentum=0.9)  # rounded by another machine
    decisions = session.take_decisions()
    (refused,) = [x for x in decisions if isinstance(x, d.DeviceRemoved)]
    assert (refused.device, refused.status) == ("c", Status.INVALID_ARGUMENT)
    assert refused.reason.startswith(f"device 'c', step 0: {message}")
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    assert (commit.devices, commit.left_out) == (3, ("c",))
    for device in "abd":
        complete(session, device, step=1, lr=0.05)  # the scheduler's next
    assert session.step.number == 2


def test_a_device_that_is_first_with_no_number_for_a_hyperparameter_harms_nobody():
    session = begun("a", "b", quorum=1)
    with pytest.raises(RefusedError, match="device 'a', step 0: its option 'lr' is no number"):
        complete(session, "a", lr=math.nan)
    complete(session, "b", lr=0.1)
    assert session.step.contributions["b"].hyperparameters == {"lr": 0.1}


def test_a_batch_that_is_skipped_weighs_nothing():
    session = begun("a", "b", "c")
    contribute(session, "a", 1.0, samples=3)
    contribute(session, "b", math.nan, samples=None)
    contribute(session, "c", 4.0, samples=6)
    (w, b, commit) = of_type(session, d.SliceReady | d.StepCommitted)
    np.testing.assert_array_equal(w.values, np.full(4, 3.0, np.float32))
    np.testing.assert_array_equal(b.values, np.full(2, -3.0, np.float32))
    assert (commit.samples, commit.devices, commit.loss) == (9, 2, 3.0)
    assert commit.left_out == ()
    contribute(session, "b", 1.0, samples=2, step=1)  # the next step is as ever
    assert session.members["b"].samples == 2


@pytest.mark.parametrize("release", ["slice", "step"])
def test_a_step_that_all_devices_skip_commits_without_samples(release):
    session = begun("a", "b", release=release)
    for device in "ab":
        contribute(session, device, math.nan, samples=None)
    decided = of_type(session, d.SliceReady | d.StepCommitted)
    for ready in decided[:2]:
        assert ready.values.dtype == np.float32
        assert not ready.values.any()
    assert [ready.values.size for ready in decided[:2]] == [4, 2]
    commit = decided[2]
    assert (commit.samples, commit.devices, math.isnan(commit.loss)) == (0, 0, True)
    assert session.step.number == 1


def test_a_batch_can_be_skipped_when_a_part_of_it_was_sent():
    """In backward the gradient that is not finite need not be the first."""
    session = begun("a", "b")
    contribute(session, "b", 4.0, samples=1)
    send(session, "a", 0, 3, W, np.zeros(4, np.float32), 1.0)
    send(session, "a", 0, None, B, np.zeros(2, np.float32), 1.0)
    with pytest.raises(RefusedError, match="claims 3 samples after 0 in the same step"):
        session.complete("a", 0, Contribution(3, 0.0), 1.0)
    session.complete("a", 0, Contribution(None, math.nan), 1.0)
    session.advance(1.0)
    (w, b, commit) = of_type(session, d.SliceReady | d.StepCommitted)
    np.testing.assert_array_equal(w.values, np.ones(4, np.float32))  # what was sent before stays in
    np.testing.assert_array_equal(b.values, np.full(2, -4.0, np.float32))
    assert (commit.samples, commit.devices, commit.loss) == (1, 1, 4.0)


def test_a_device_that_sends_other_tensors_than_the_others_is_refused():
    session = begun("a", "b")
    contribute(session, "a")
    send(session, "b", 0, 1, W, np.ones(4, np.float32), 1.0)
    with pytest.raises(RefusedError, match=r"device 'b', step 0.*differ in whether they sent the gradient of 'b'"):
        session.complete("b", 0, Contribution(1, 0.0), 1.0)


def test_abort_releases_every_device_with_the_reason():
    session = begun("a", "b")
    session.abort("flwr stop")
    decisions = session.take_decisions()
    removed = {x.device: x for x in decisions if isinstance(x, d.DeviceRemoved)}
    assert removed.keys() == {"a", "b"}
    assert all(x.status is Status.ABORTED and "flwr stop" in x.reason for x in removed.values())
    assert decisions[-1] == d.PhaseChanged(d.Phase.ABORTED, "flwr stop")


def test_too_few_devices_by_the_join_deadline_abort():
    session = Session("leaves", SessionSettings(devices=3, join_deadline_s=10))
    session.tick(1000.0)
    assert session.phase is d.Phase.GATHERING  # nobody waits yet
    session.join(joining("a"), 1000.0)
    session.tick(1009.9)
    assert session.phase is d.Phase.GATHERING
    session.tick(1010.0)
    assert session.phase is d.Phase.ABORTED
    assert session.reason == "1 of 3 devices joined within 10 s: a"


def test_the_step_deadline_leaves_stragglers_out_if_the_quorum_is_there():
    session = begun("a", "b", "c", quorum=2, step_deadline_s=5)
    contribute(session, "a", value=1.0, samples=1, now=10.0)
    contribute(session, "b", value=4.0, samples=2, now=11.0)
    send(session, "c", 0, 5, B, np.full(2, -10.0, np.float32), 12.0)
    session.tick(14.9)
    assert "c" in session.members
    session.tick(15.0)
    decisions = session.take_decisions()
    (healing,) = [x for x in decisions if isinstance(x, d.DeviceHealing)]
    assert "device 'c' was left out of step 0: it took longer than 5 s" in healing.reason
    ready = {x.key: x.values for x in decisions if isinstance(x, d.SliceReady)}
    assert np.allclose(ready[W], 3.0)  # reweighted by the samples that arrived
    assert np.allclose(ready[B], (-1 - 8 - 50) / 8)  # what the straggler did send counts
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    assert (commit.devices, commit.left_out) == (2, ("c",))


def test_the_step_deadline_aborts_without_the_quorum_and_names_who_is_missing():
    session = begun("a", "b", step_deadline_s=5)
    contribute(session, "a", now=10.0)
    session.tick(15.0)
    assert session.phase is d.Phase.ABORTED
    assert "step 0: 1 devices contributed within 5 s where at least 2 are needed; waited for 'b'" in session.reason


def test_silence_of_all_devices_ends_the_session():
    session = begun("a", "b", idle_deadline_s=100)
    session.tick(99.0)
    assert session.phase is d.Phase.TRAINING
    session.tick(100.0)
    assert session.phase is d.Phase.ABORTED
    assert "no device sent anything for 100 s" in session.reason


def test_a_lost_device_ends_a_session_that_needs_it_and_not_one_that_does_not():
    needed = begun("a", "b")
    needed.remove("b", "its connection broke", 1.0)
    assert needed.phase is d.Phase.ABORTED
    assert "device 'b' left in step 0: its connection broke; 1 devices remain where at least 2" in needed.reason
    spared = begun("a", "b", quorum=1)
    contribute(spared, "a", value=3.0)
    spared.remove("b", "its connection broke", 1.0)
    decisions = spared.take_decisions()
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    assert (commit.devices, commit.left_out) == (1, ("b",))


def test_a_device_that_leaves_while_gathering_can_come_back():
    session = Session("leaves", SessionSettings(devices=2))
    session.join(joining("a"), 0.0)
    send(session, "a", 0, 1, W, np.ones(4, np.float32), 0.5)
    session.remove("a", "restarted", 1.0)
    session.join(joining("a"), 2.0)
    session.join(joining("b"), 2.0)
    assert session.phase is d.Phase.TRAINING


def test_a_device_that_had_gone_on_before_another_finished_is_told_at_once():
    session = begun("a", "b")
    for device in ("a", "b"):
        contribute(session, device)
    contribute(session, "b", step=1)
    session.take_decisions()
    session.finish("a", 2.0)
    removed = [x for x in session.take_decisions() if isinstance(x, d.DeviceRemoved)]
    assert [(x.device, x.status) for x in removed] == [("a", Status.OK), ("b", Status.ABORTED)]
    assert "device 'b' goes on with step 1, but others have finished" in removed[1].reason


def test_finishing_never_aborts_but_others_cannot_go_on_alone():
    session = begun("a", "b")
    for device in ("a", "b"):
        contribute(session, device)
    session.finish("a", 2.0)
    assert session.phase is d.Phase.TRAINING
    with pytest.raises(RefusedError, match="device 'b' goes on with step 1, but others have finished"):
        contribute(session, "b", step=1)
    session.finish("b", 3.0)
    assert (session.phase, session.reason) == (d.Phase.ENDED, "all devices have finished")


def test_devices_that_may_take_no_further_step_end_the_session_and_say_why():
    session = begun("a", "b", "c")
    for device in ("a", "b", "c"):
        contribute(session, device)
    session.finish("a", 2.0, "the budget is spent")
    with pytest.raises(RefusedError, match="others have finished: as 'a' says, the budget is"):
        contribute(session, "c", step=1)
    session.finish("b", 3.0)
    session.finish("c", 3.0, "the budget is spent")
    assert session.phase is d.Phase.ENDED
    assert session.reason == "all devices have finished: as 'c' says, the budget is spent"


@pytest.mark.parametrize(
    "values",
    [{"devices": 0}, {"quorum": 5}, {"codec": "zip"}, {"step_deadline_s": 0}, {"frame_bytes": 1}, {"colour": 1}],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        SessionSettings(**values)


# ---------------------------------------------------------------- nothing lost


def test_a_straggler_is_not_waited_for_until_it_is_in_time_again():
    session = begun("a", "b", "c", quorum=2, step_deadline_s=5)
    for device in "ab":
        contribute(session, device, now=10.0)
    session.tick(15.0)
    assert session.members["c"].standing is Standing.LAGGING
    contribute(session, "c", now=16.0)  # its frames of step 0 come late: no error, and nothing happens
    assert session.step.number == 1
    for device in "ab":
        contribute(session, device, step=1, now=17.0)
    assert session.step.number == 2  # committed without waiting for it
    session.take_decisions()
    contribute(session, "c", step=2, now=18.0)
    assert of_type(session, d.DeviceRecovered) == [d.DeviceRecovered("c", 2)]
    contribute(session, "a", step=2, now=18.0)
    assert session.step.number == 2  # waited for again
    contribute(session, "b", step=2, now=18.0)
    assert session.step.number == 3


def test_silence_ends_a_lease_and_a_sign_of_life_renews_it():
    session = begun("a", "b", quorum=1, lease_s=20)
    session.members.heard("a", 15.0)
    session.tick(19.9)
    assert session.members.keys() == {"a", "b"}
    session.tick(20.0)
    assert session.members.keys() == {"a"}
    (removed,) = of_type(session, d.DeviceRemoved)
    assert (removed.status, removed.reason) == (
        Status.DEADLINE_EXCEEDED,
        "device 'b': nothing was heard from it for 20 s",
    )


def test_a_broken_connection_keeps_its_place_and_counts_nothing_twice():
    session = begun("a", "b")
    send(session, "a", 0, 1, W, np.full(4, 1.0, np.float32), 1.0)
    session.members.disconnected("a", 2.0)
    token = session.members["a"].token
    assert session.join(joining("a", next_step=0, token=token, weights_digest=b""), 3.0).standing is Standing.ACTIVE
    contribute(session, "a", value=1.0, now=3.0)  # all frames anew
    contribute(session, "b", value=3.0, now=3.0)
    ready = {x.key: x.values for x in of_type(session, d.SliceReady)}
    assert np.allclose(ready[W], 2.0)
    assert np.allclose(ready[B], -2.0)


def test_a_device_that_missed_a_commit_sees_the_step_again_on_its_new_stream():
    session = begun("a", "b")
    token = session.members["a"].token
    for device in "ab":
        contribute(session, device)
    session.members.disconnected("a", 2.0)
    back = session.join(joining("a", next_step=0, token=token), 3.0, replayable_from=0)
    assert back.standing is Standing.ACTIVE
    contribute(session, "a", step=0, now=3.0)  # what it sends again comes too late, and is no error
    too_old = session.join(joining("a", next_step=0, token=back.token), 4.0, replayable_from=1)
    assert too_old.standing is Standing.HEALING


def test_a_restarted_device_heals_and_takes_part_at_the_next_step():
    session = begun("a", "b", quorum=1)
    for step in range(3):
        for device in "ab":
            contribute(session, device, step=step)
    session.members.disconnected("b", 2.0)
    assert session.join(joining("b"), 3.0, replayable_from=2).standing is Standing.HEALING
    contribute(session, "a", step=3, now=3.0)
    assert session.step.number == 4  # the others went on
    session.healed("b", 4)
    contribute(session, "b", step=4, now=4.0)
    assert session.members["b"].standing is Standing.ACTIVE
    contribute(session, "a", step=4, now=4.0)
    commits = of_type(session, d.StepCommitted)
    assert [commit.devices for commit in commits[-2:]] == [1, 2]


def test_a_checkpoint_within_the_kept_steps_needs_no_snapshot():
    session = begun("a", "b", quorum=1)
    for step in range(3):
        for device in "ab":
            contribute(session, device, step=step)
    session.members.disconnected("b", 2.0)
    assert session.join(joining("b", next_step=2), 3.0, replayable_from=1).standing is Standing.LAGGING


def test_a_session_without_its_quorum_waits_for_devices_to_come_back():
    session = begun("a", "b", rejoin_deadline_s=30)
    session.remove("b", "its battery was empty", 10.0)
    contribute(session, "a", now=11.0)
    session.tick(39.9)
    assert session.phase is d.Phase.TRAINING
    assert session.step.number == 0
    session.join(joining("b"), 39.9)
    session.healed("b", 0)
    contribute(session, "b", now=39.9)
    assert session.step.number == 1
    session.remove("b", "its battery was empty", 40.0)
    session.tick(70.0)
    assert session.phase is d.Phase.ABORTED
    assert "device 'b' left in step 1: its battery was empty; 1 devices remain where at least 2" in session.reason


def test_a_resumed_session_goes_on_at_the_step_that_the_furthest_device_has():
    before = begun("a", "b", "c")
    session = Session("leaves", before.settings)
    session.restore(before.admission, step=7, devices=["a", "b", "c"])
    assert session.join(joining("a", next_step=6), 0.0).standing is Standing.ACTIVE
    assert session.join(joining("b", next_step=7, weights_digest=b"b"), 0.0).standing is Standing.ACTIVE
    assert session.members["a"].standing is Standing.HEALING  # step 6 was committed: b has applied it
    assert session.join(joining("c"), 0.0).standing is Standing.HEALING  # it has no state at all
    assert (session.phase, session.step.number) == (d.Phase.TRAINING, 7)
    told = [x for x in of_type(session, d.DeviceHealing) if x.must_be_told]
    assert [x.device for x in told] == ["a"]


def test_a_commit_that_reached_nobody_is_done_again():
    session = Session("leaves", SessionSettings(devices=2, **SETTINGS))
    session.restore(begun("a", "b").admission, step=8, devices=["a", "b"])  # step 7 was recorded, and not sent
    for device in "ab":
        session.join(joining(device, next_step=7, weights_digest=b""), 0.0)
    for device in "ab":
        contribute(session, device, step=7)
    assert session.step.number == 8


def test_the_state_of_the_furthest_survivor_counts_when_all_were_restarted():
    session = begun("a", "b", rejoin_deadline_s=30)
    for step in range(5):
        for device in "ab":
            contribute(session, device, step=step)
    for device, step in (("a", 1), ("b", 2)):
        session.remove(device, "power cut", 10.0)
        session.join(joining(device, next_step=step), 11.0)
    session.tick(12.0)
    assert session.members["b"].standing is Standing.LAGGING
    assert session.step.number == 2
    assert of_type(session, d.StepSet) == [d.StepSet(2)]


def test_what_an_untrained_device_sent_before_a_trained_one_came_counts_no_more():
    session = Session("leaves", SessionSettings(devices=2, first_step=4, **SETTINGS))
    session.join(joining("fresh"), 0.0)
    contribute(session, "fresh", value=100.0, step=4)
    session.join(joining("trained", next_step=4, weights_digest=b"trained"), 0.0)
    assert session.members["fresh"].standing is Standing.HEALING
    session.healed("fresh", 4)
    for device in ("trained", "fresh"):
        contribute(session, device, value=1.0, step=4)
    assert session.step.number == 5
    means = [x.values for x in of_type(session, d.SliceReady)]
    assert [mean.tolist() for mean in means] == [[1.0] * 4, [-1.0] * 2]


def test_a_device_that_heals_with_an_earlier_state_takes_again_what_it_completed():
    session = begun("a", "b", "c", rejoin_deadline_s=30, quorum=1)
    contribute_weights(session, "a", 1.0)
    contribute_weights(session, "b", 1.0)
    contribute_weights(session, "c", 2.0)
    session.advance(1.0)
    assert session.members["c"].standing is Standing.HEALING
    for device in "ab":
        session.remove(device, "power cut", 10.0)
    session.join(joining("a", next_step=0, weights_digest=b"a"), 11.0)
    session.tick(12.0)
    session.healed("c", 0)
    contribute(session, "c", step=0, now=12.0)
    assert session.step.number == 1


def test_a_diverged_device_is_named_and_sent_to_heal():
    session = begun("a", "b", "c")
    for device, value in (("a", 1.0), ("b", 1.0), ("c", 1.01)):
        contribute_weights(session, device, value)
    session.advance(1.0)
    (healing,) = of_type(session, d.DeviceHealing)
    assert (healing.device, healing.must_be_told) == ("c", True)
    assert healing.reason == (
        "device 'c' diverged: before step 0 its 'output' differed from that of most by 0.01, 15.1 times what rounding "
        "explains"
    )
    assert session.members.standing(Standing.HEALING) == ["c"]


def test_rounding_is_no_divergence_and_is_undone_in_the_next_step():
    session = begun("a", "b", "c", digest_every=1)

    def step_with(*values: float) -> d.StepCommitted:
        number = session.step.number
        for device, value in zip("abc", values, strict=True):
            contribute_weights(session, device, value, number)
        session.advance(1.0)
        decisions = session.take_decisions()
        assert not [x for x in decisions if isinstance(x, d.DeviceHealing)]
        (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
        return commit

    assert not step_with(1.0, 1.0, 1.0).alignment  # machines that are alike never pay for it
    assert not step_with(1.0, 1.0, 1 + 1e-6).alignment
    aligned = step_with(1.0, 1.0, 1 + 3e-4)
    assert "rounding has moved 'output' of device 'c' by 0.0003" in aligned.alignment
    assert not step_with(1.0, 1.0, 1 + 3e-4).alignment  # this step averages
    assert not step_with(1.0, 1.0, 1.0).alignment


def test_weights_are_averaged_only_in_a_step_that_somebody_has_samples_in():
    session = begun("a", "b", digest_every=1)
    for number, samples in enumerate((1, None, 1)):
        for device, value in (("a", 1.0), ("b", 1 + 5e-4)):
            contribute_weights(session, device, value, number, samples)
        session.advance(1.0)
    commits = of_type(session, d.StepCommitted)
    assert [bool(commit.alignment) for commit in commits] == [True, True, False]


def test_a_resumed_fleet_of_unlike_machines_goes_on_together():
    session = Session("leaves", SessionSettings(devices=3, **SETTINGS))
    session.restore(session.admission, 7, ["a", "b", "c"])
    weights = {"a": 1.0, "b": 1 + 1e-3, "c": 1.01}
    standings = {
        device: session.join(
            joining(device, next_step=7, weights_digest=device.encode(), sketch=sketch(value, 7)), 0.0
        ).standing
        for device, value in weights.items()
    }
    assert standings == {"a": Standing.ACTIVE, "b": Standing.ACTIVE, "c": Standing.HEALING}
    for device in "ab":
        contribute_weights(session, device, weights[device], 7)
    session.healed("c", 7)
    contribute_weights(session, "c", 1.0, 7)
    session.advance(1.0)
    (commit,) = of_type(session, d.StepCommitted)
    assert commit.alignment
    assert not session.members.standing(Standing.HEALING)


def test_the_last_device_with_the_state_is_asked_for_it_before_it_goes():
    session = begun("a", "b", quorum=1, rejoin_deadline_s=30)
    session.remove("b", "killed", 10.0)
    assert session.members.is_last_with_state("a")
    session.finish("a", 11.0)
    session.tick(12.0)
    assert session.phase is d.Phase.TRAINING  # b may come back for the result
    session.tick(40.0)
    assert session.phase is d.Phase.ENDED


# ---------------------------------------------------------------- several batches in a step


def in_batches(session: Session, device: str, step: int, batches: int, value: float = 1.0, now: float = 1.0) -> None:
    for key, sign in ((W, 1), (B, -1)):
        send(session, device, step, 1, key, np.full(SPECS[key.tensor].size, sign * value, np.float32), now)
    session.complete(device, step, Contribution(1, loss=value, batches=batches), now)
    session.advance(now)


def test_a_step_has_the_number_of_its_first_batch_and_the_next_one_comes_after_its_last():
    session = begun("a", "b")
    for step, batches in ((0, 5), (5, 1), (6, 3)):
        for device in "ab":
            in_batches(session, device, step, batches)
        (commit,) = of_type(session, d.StepCommitted)
        assert (commit.step, commit.batches, commit.last_batch) == (step, batches, step + batches - 1)
    assert session.step.number == 9
    for step in (6, 11):  # one that is over, and one to come
        with pytest.raises(RefusedError, match=f"sent a frame of step {step}; the session is at step 9"):
            in_batches(session, "a", step, 1)


@pytest.mark.parametrize("batches", [0, -1, 1_000_001])
def test_a_number_of_batches_that_cannot_be_is_refused_by_name(batches):
    session = begun("a", "b", quorum=1)
    with pytest.raises(RefusedError, match=f"device 'a', step 0: claims {batches} batches in one step") as refusal:
        in_batches(session, "a", 0, batches)
    assert refusal.value.status is Status.INVALID_ARGUMENT
    session.remove("a", refusal.value.reason, 1.0)
    in_batches(session, "b", 0, 4)
    assert session.step.number == 4


def test_devices_exchange_after_the_same_number_of_batches():
    session = begun("a", "b", "c", quorum=2)
    in_batches(session, "a", 0, 5)
    in_batches(session, "b", 0, 4)
    in_batches(session, "c", 0, 5)
    decisions = session.take_decisions()
    (refused,) = [x for x in decisions if isinstance(x, d.DeviceRemoved)]
    assert refused.reason.startswith("device 'b', step 0: it trained 4 batches since the last step, and device 'a'")
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    assert (commit.batches, commit.devices, commit.left_out) == (5, 2, ("b",))


def test_a_returning_device_replays_whole_steps_only():
    session = begun("a", "b", quorum=1)
    for step in (0, 5, 10):
        for device in "ab":
            in_batches(session, device, step, 5)
    for next_step, standing in ((5, Standing.LAGGING), (10, Standing.LAGGING), (15, Standing.LAGGING)):
        session.remove("b", "killed", 2.0)
        assert session.join(joining("b", next_step=next_step), 3.0, replayable_from=5).standing is standing
    session.remove("b", "killed", 2.0)
    assert session.join(joining("b", next_step=0), 3.0, replayable_from=5).standing is Standing.HEALING


@pytest.mark.parametrize("release", ["slice", "step"])
def test_what_counts_of_a_straggler_is_told(release):
    session = begun("a", "b", "c", quorum=2, step_deadline_s=5, release=release)
    for device in "ab":
        in_batches(session, device, 0, 3, value=1.0, now=1.0)
    send(session, "c", 0, 2, W, np.full(4, 5.0, np.float32), 2.0)
    session.tick(7.0)
    decisions = session.take_decisions()
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    assert (commit.left_out, commit.counted_slices) == (("c",), {"c": 1})
    means = {x.key: x.values[0] for x in decisions if isinstance(x, d.SliceReady)}
    assert means == {W: 3.0, B: -1.0}
    send(session, "c", 0, 2, B, np.full(2, 5.0, np.float32), 8.0)  # too late
    for device in "ab":
        in_batches(session, device, 3, 3, now=9.0)
    (commit,) = of_type(session, d.StepCommitted)  # it still lags, and is not waited for
    assert (commit.left_out, commit.counted_slices) == ((), {"c": 0})


def test_a_device_that_was_removed_is_told_what_counted():
    session = begun("a", "b", "c", quorum=2)
    send(session, "c", 0, 1, W, np.ones(4, np.float32), 1.0)
    session.remove("c", "its connection broke", 1.0)
    for device in "ab":
        in_batches(session, device, 0, 3)
    (commit,) = of_type(session, d.StepCommitted)
    assert commit.counted_slices == {"c": 1}


def test_of_a_device_that_comes_after_results_have_left_nothing_in_between_counts():
    """It is told how many of its first slices are in the means: none can be after one that is not."""
    session = begun("a", "b", "c", quorum=2, step_deadline_s=5)
    for device in "ab":
        in_batches(session, device, 0, 3)
    session.tick(7.0)  # c lags from here on
    session.take_decisions()
    for device in "ab":
        send(session, device, 3, 1, W, np.ones(4, np.float32), 8.0)
    session.advance(8.0)
    assert [x.key for x in of_type(session, d.SliceReady)] == [W]
    for key in (W, B):
        send(session, "c", 3, 1, key, np.full(SPECS[key.tensor].size, 7.0, np.float32), 8.0)
    session.complete("c", 3, Contribution(1, 0.0, batches=3), 8.0)
    for device in "ab":
        send(session, device, 3, 1, B, np.ones(2, np.float32), 9.0)
        session.complete(device, 3, Contribution(1, 0.0, batches=3), 9.0)
    session.advance(9.0)
    (ready, commit) = of_type(session, d.SliceReady | d.StepCommitted)
    np.testing.assert_array_equal(ready.values, np.ones(2, np.float32))
    assert (commit.left_out, commit.counted_slices) == ((), {"c": 0})


def test_a_device_that_does_not_come_back_to_a_resumed_session_is_left_out_of_its_first_step():
    session = Session("leaves", SessionSettings(devices=3, quorum=2, join_deadline_s=10, **SETTINGS))
    session.restore(begun("a", "b", "c").admission, step=10, devices=["a", "b", "c"])
    for device in "ab":
        session.join(joining(device, next_step=10), 0.0)
    session.tick(10.0)
    for device in "ab":
        in_batches(session, device, 10, 5)
    (commit,) = of_type(session, d.StepCommitted)
    assert (commit.step, commit.left_out, commit.counted_slices) == (10, ("c",), {"c": 0})
    assert session.step.number == 15
