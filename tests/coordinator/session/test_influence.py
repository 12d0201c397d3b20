"""What bounds a valid member's influence in a session: samples, curvature, and rules that see a whole step."""

from collections.abc import Iterator

import numpy as np
import pytest
from at_once import AtOnceSession
from edgenewton.v1.codecs import CODEC_NUMBERS
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec
from pydantic import ValidationError

from coordinator.session import decisions as d
from coordinator.session.members import Joining
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution

W, A = SliceKey(0, 0), SliceKey(1, 0)
SPECS = (TensorSpec("w", (2,)), TensorSpec("l:A", (1, 3), kind="curvature", structure="triangles"))
GOOD = np.array([2.0, 0.5, 1.0], np.float32)
"""The upper triangle of a covariance."""


def begun(devices: int, held: int = 0, specs=SPECS, **options) -> Session:
    session = AtOnceSession("s", SessionSettings(devices=devices, rejoin_deadline_s=0, **options))
    for index in range(devices):
        codecs = tuple(CODEC_NUMBERS.values())
        session.join(Joining(f"d{index}", specs, {}, b"same", training_samples=held, codecs=codecs), now=0.0)
    session.take_decisions()
    return session


def contribute(session: Session, index: int, w, a=GOOD, samples: int | None = 32, batches: int = 1) -> None:
    device, step = f"d{index}", session.step.number
    for key, values in ((W, w), (A, a)):
        if session.wants(device, step, samples, key, 1.0):
            session.contribute(device, samples, key, np.asarray(values, np.float32))
    session.complete(device, step, Contribution(samples, 0.5, batches=batches), 1.0)
    session.advance(1.0)


def results(session: Session) -> tuple[dict[SliceKey, list[float]], d.StepCommitted, list[d.DeviceUnlike]]:
    decisions = session.take_decisions()
    values = {x.key: x.values.tolist() for x in decisions if isinstance(x, d.SliceReady)}
    (commit,) = [x for x in decisions if isinstance(x, d.StepCommitted)]
    return values, commit, [x for x in decisions if isinstance(x, d.DeviceUnlike)]


def step(session: Session, *values, **bad) -> tuple[dict[SliceKey, list[float]], d.StepCommitted, list[d.DeviceUnlike]]:
    """Let each device contribute a gradient, and the last one what `bad` says otherwise."""
    for index, value in enumerate(values):
        contribute(session, index, [value, value], **(bad if index == len(values) - 1 else {}))
    return results(session)


# ------------------------------------------------------------------ samples


def test_a_batch_counts_with_sixteen_times_the_median_at_most():
    session = begun(3)
    step(session, 1.0, 1.0, 1.0)
    values, commit, unlike = step(session, 1.0, 1.0, -1.0, samples=1 << 20)
    assert values[W][0] == pytest.approx((64 - 512) / 576)
    assert commit.samples == 576
    assert [(x.device, x.reason, x.times) for x in unlike] == [
        ("d2", "it claims 1048576 samples, and counted with 512", 1)
    ]


def test_the_loss_and_the_report_count_with_it_too():
    session = begun(2)
    step(session, 1.0, 1.0)
    contribute(session, 0, [1.0, 1.0])
    contribute(session, 1, [1.0, 1.0], samples=1 << 20)
    decisions = session.take_decisions()
    (report,) = [x for x in decisions if isinstance(x, d.DeviceReported) and x.device == "d1"]
    assert report.contribution.weight == 512


def test_nobody_counts_with_more_than_it_says_it_holds():
    session = begun(3, held=50)
    values, _, unlike = step(session, 0.0, 0.0, 1.0, samples=1000)  # in the first step already
    assert values[W][0] == pytest.approx(50 / 114)
    assert "counted with 50" in unlike[0].reason


def test_whoever_lies_about_what_it_holds_counts_in_the_first_step_with_what_most_hold():
    session = AtOnceSession("s", SessionSettings(devices=3))
    for index, held in enumerate((60, 60, 10**9)):
        session.join(Joining(f"d{index}", SPECS, {}, b"same", training_samples=held), now=0.0)
    session.take_decisions()
    values, _, _ = step(session, 0.0, 0.0, 1.0, samples=1 << 20)
    assert values[W][0] == pytest.approx(60 / 124)


HELD = (40, 2_000, 100, 600, 60, 10**9)


@pytest.mark.parametrize("aggregator", ["mean", "clip"])
@pytest.mark.parametrize("devices", [3, 4, 6])
def test_what_counts_in_the_first_step_does_not_depend_on_who_comes_first(devices, aggregator):
    """Each joins, sends and completes at any time; the last of them begins the session."""
    most = sorted(HELD[:devices])[devices // 2]
    counted = [min(held, most) for held in HELD[:devices]]
    found = set()
    for seed in range(12):
        values, commit, unlike = first_step(devices, aggregator, np.random.default_rng(seed))
        found.add((tuple(values[W]), commit.loss))  # to the last bit
        assert commit.samples == sum(counted)
        told = {x.device: x.reason for x in unlike}
        assert told.keys() == {f"d{index}" for index, held in enumerate(HELD[:devices]) if held > most}
        assert all(reason.endswith(f"and counted with {most}") for reason in told.values())
    assert len(found) == 1
    ((first, _), loss) = found.pop()
    assert loss == pytest.approx(np.average(np.arange(devices), weights=counted))
    if aggregator == "mean":
        assert first == pytest.approx(np.average(np.arange(devices), weights=counted))


def first_step(devices: int, aggregator: str, rng: np.random.Generator):
    names = [f"d{index}" for index in range(devices)]
    session = AtOnceSession("s", SessionSettings(devices=devices, rejoin_deadline_s=0, aggregator=aggregator))
    does: dict[str, Iterator[None]] = {}
    for name in rng.permutation([name for name in names for _ in range(3)]):
        if name not in does:
            does[name] = takes_part(session, name)
        next(does[name], None)
    session.advance(1.0)
    return results(session)


def takes_part(session: Session, name: str) -> Iterator[None]:
    index = int(name[1:])
    held = HELD[index]
    session.join(Joining(name, SPECS, {}, b"same", training_samples=held), now=0.0)
    yield
    samples = min(held, 1 << 20)
    for key, values in ((W, [index, index]), (A, GOOD)):
        assert session.wants(name, 0, samples, key, 1.0)
        session.contribute(name, samples, key, np.asarray(values, np.float32))
    session.advance(1.0)
    yield
    session.complete(name, 0, Contribution(samples, float(index)), 1.0)
    session.advance(1.0)


def test_the_session_can_set_how_many_samples_count():
    session = begun(2, max_samples=32)
    values, _, _ = step(session, 0.0, 1.0, samples=96)
    assert values[W][0] == 0.5


def test_a_step_of_one_sample_each_between_others_caps_nobody():
    session = begun(2)
    step(session, 1.0, 1.0)
    for index in range(2):
        contribute(session, index, [1.0, 1.0], samples=1)
    results(session)
    _, commit, unlike = step(session, 1.0, 1.0)
    assert (commit.samples, unlike) == (64, [])


MOVES = (TensorSpec("w", (2,), kind="delta"), SPECS[1])


def test_the_samples_of_several_batches_are_those_of_as_many():
    session = begun(2, held=40, specs=MOVES)
    session.progress.batches = None  # only the devices know
    for batches in (10, 10, 10):
        for index in range(2):
            contribute(session, index, [1.0, 1.0], samples=32 * batches, batches=batches)
        _, commit, unlike = results(session)
        assert (commit.samples, unlike) == (2 * 32 * batches, [])
    for index, samples in enumerate((320, 1 << 20)):
        contribute(session, index, [1.0, 1.0], samples=samples, batches=10)
    assert results(session)[1].samples == 320 + 400  # ten batches of what it holds


# ------------------------------------------------------------------ curvature, whatever the rule


def test_a_negative_diagonal_weighs_nothing_and_the_gradient_beside_it_does():
    session = begun(3)
    values, commit, unlike = step(session, 1.0, 1.0, 4.0, a=-GOOD)
    assert values[A] == GOOD.tolist()
    assert values[W] == [2.0, 2.0]
    assert commit.devices == 3
    assert unlike[0].device == "d2"
    assert "negative number on a diagonal" in unlike[0].reason


def test_off_the_diagonal_anything_may_be_negative():
    _, _, unlike = step(begun(2), 1.0, 1.0, a=[2.0, -1.0, 1.0])
    assert unlike == []


def test_curvature_beyond_what_was_seen_weighs_nothing():
    session = begun(3)
    step(session, 1.0, 1.0, 1.0)
    values, _, unlike = step(session, 1.0, 1.0, 1.0, a=1e24 * GOOD)
    assert values[A] == GOOD.tolist()
    assert "1e+24 times as large" in unlike[0].reason
    # Those that stay are not judged by what was dropped.
    assert step(session, 1.0, 1.0, 1.0, a=900 * GOOD)[2] == []


def test_curvature_of_nobody_is_zeros():
    session = begun(2)
    for index in range(2):
        contribute(session, index, [1.0, 1.0], a=-GOOD)
    assert results(session)[0][A] == [0.0, 0.0, 0.0]


def test_it_is_told_the_first_the_second_the_fourth_time():
    session = begun(2)
    told = [x.times for _ in range(9) for x in step(session, 1.0, 1.0, a=-GOOD)[2]]
    assert told == [1, 2, 4, 8]


# ------------------------------------------------------------------ rules


@pytest.mark.parametrize("rule", ["clip", "median", "trimmed-mean", "krum", "multi-krum", "centred-clip", "history"])
def test_one_of_four_cannot_turn_a_step_around(rule):
    session = begun(4, aggregator=rule)
    for _ in range(3):
        values, commit, _ = step(session, 1.0, 1.1, 0.9, -10.0, a=1e24 * GOOD)
        assert values[W][0] > 0.4
        assert values[A][0] < 30
        assert commit.devices == 4


def test_nothing_leaves_before_the_step_is_complete():
    session = begun(3, aggregator="history")
    for index in range(3):
        session.wants(f"d{index}", 0, 32, W, 1.0)
        session.contribute(f"d{index}", 32, W, np.ones(2, np.float32))
    session.advance(1.0)
    assert not [x for x in session.take_decisions() if isinstance(x, d.SliceReady)]


def test_who_is_late_with_a_part_has_no_part_in_it_and_is_told_so():
    session = begun(3, aggregator="median", quorum=2, step_deadline_s=5, lease_s=1000)
    session.wants("d2", 0, 32, W, 1.0)
    session.contribute("d2", 32, W, np.full(2, 100.0, np.float32))
    contribute(session, 0, [1.0, 1.0])
    contribute(session, 1, [2.0, 2.0])
    session.tick(7.0)
    values, commit, _ = results(session)
    assert values[W] == [1.5, 1.5]
    assert commit.left_out == ("d2",)
    assert commit.counted_slices == {"d2": 0}


def test_who_skips_its_batch_has_no_part_in_it():
    session = begun(3, aggregator="median")
    values, commit, _ = step(session, 1.0, 2.0, 100.0, samples=None)
    assert values[W] == [1.5, 1.5]
    assert commit.devices == 2


def test_a_step_that_all_skip_is_zeros():
    session = begun(2, aggregator="history")
    for index in range(2):
        contribute(session, index, [1.0, 1.0], samples=None)
    assert results(session)[0] == {W: [0.0, 0.0], A: [0.0, 0.0, 0.0]}


def test_who_is_unlike_the_others_is_named():
    session = begun(4, aggregator="history")
    unlike = []
    for _ in range(4):
        unlike += step(session, 1.0, 1.1, 0.9, -10.0)[2]
    assert {x.device for x in unlike} == {"d3"}
    assert "its gradients: " in unlike[0].reason


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"devices": 4, "bad_devices": 2}, "half or more"),
        ({"aggregator": "median", "codec": "sparse1"}, "takes each element on its own"),
        ({"aggregator": "bulyan"}, "history"),
        ({"max_samples": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_settings_are_refused(settings, match):
    with pytest.raises(ValidationError, match=match):
        SessionSettings(**settings)


def test_a_rule_by_element_leaves_no_choice_of_sparse_moves():
    moves = (TensorSpec("w", (4096,), kind="delta"),)
    for rule, count in (("median", 0), ("history", 2)):
        assert len(begun(2, specs=moves, aggregator=rule).progress._cadence._sizes) == count
