import json
import math
from itertools import pairwise

import pytest
from edgenewton.v1 import exchange_pb2 as pb
from session_events import committed, joined, left, phase, report

from coordinator.session.settings import SessionSettings
from coordinator.telemetry.curve import Curve
from coordinator.telemetry.history import StepRecord
from coordinator.telemetry.record import Record
from coordinator.telemetry.statistics import MAX_GONE, STEP_SECONDS, SessionStatistics
from coordinator.telemetry.stored import dump_statistics, load_statistics


def statistics_of(*events):
    statistics = SessionStatistics("s")
    for event in events:
        statistics.apply(event)
    return statistics


def test_bytes_add_up_over_connections_and_memberships():
    statistics = statistics_of(
        joined("a"),
        report("a", 0, 1.0, received=100, sent=10, saved=5),
        report("a", 1, 2.0, received=250, sent=40, saved=9),
        left("a", 3.0, "DEADLINE_EXCEEDED", "silent", bytes_received=250, bytes_sent=70, bytes_saved=9),
        joined("a", 4.0),
        report("a", 2, 5.0, received=30, sent=3, saved=-1),
    )
    a = statistics.devices["a"]
    assert (a.received, a.sent, a.saved) == (280, 73, 8)
    assert (statistics.received, statistics.sent, statistics.saved) == (280, 73, 8)
    assert a.last_error == "silent"
    assert a.last_error_at == 3.0
    assert (a.batches, a.step, a.state) == (3, 2, "training")


def test_skipped_batches_are_counted_apart():
    statistics = statistics_of(
        joined("a"), report("a", 0, 1.0, loss=2.0), report("a", 1, 2.0, loss=math.nan, skipped=True), joined("b")
    )
    a = statistics.devices["a"]
    assert (a.batches, a.skipped, a.step, a.loss, statistics.skipped) == (1, 1, 1, 2.0, 1)
    assert (a.last_error, a.last_error_at) == ("skipped its batch of step 1: it could not be used", 2.0)
    assert statistics.devices["b"].skipped == 0


def test_lag_is_counted_from_the_first_device_of_the_step():
    statistics = statistics_of(report("a", 4, 10.0), report("b", 4, 10.25), report("b", 5, 11.0), report("a", 5, 11.5))
    assert statistics.devices["b"].lag_s == 0.0
    assert statistics.devices["a"].lag_s == 0.5


def test_rates_approach_what_flows_and_end_with_it():
    statistics = statistics_of(
        joined("a", 0.0), *(report("a", t, float(t), received=1_000 * t, sent=0) for t in range(1, 60))
    )
    received, sent = statistics.devices["a"].rates(60.0)
    assert received == pytest.approx(1_000, rel=0.01)
    assert sent == 0
    assert statistics.devices["a"].rates(70.0) == (0.0, 0.0)


def test_steps_losses_and_accuracy():
    statistics = statistics_of(
        phase(pb.PHASE_TRAINING, 1.0),
        committed(0, 2.0, seconds=0.2, loss=2.0, correct=3),
        committed(1, 3.0, seconds=70.0, loss=1.0, left_out=["b"]),
    )
    assert (statistics.codec, statistics.phase, statistics.began_at) == ("int8", "training", 1.0)
    assert (statistics.step, statistics.steps, statistics.samples) == (1, 2, 32)
    assert list(statistics.curves.loss) == [(0, 2.0), (1, 1.0)]
    assert list(statistics.curves.accuracy) == [(0, 0.3)]
    assert statistics.step_buckets[STEP_SECONDS.index(0.25)] == 1
    assert statistics.step_buckets[-1] == 1
    assert statistics.devices["b"].left_out == statistics.left_out == 1
    assert statistics.devices["b"].last_error == "not in time for step 1"


def test_of_a_device_that_is_gone_the_reason_stays():
    statistics = statistics_of(
        joined("a"), left("a", 1.0, "DEADLINE_EXCEEDED", "nothing was heard"), committed(0, 2.0, left_out=["a"])
    )
    assert statistics.devices["a"].last_error == "nothing was heard"
    assert statistics.devices["a"].left_out == 1


def test_numbers_that_are_none_are_not_shown():
    statistics = statistics_of(report("a", 0, 1.0, loss=math.nan), committed(0, 2.0, loss=math.inf))
    assert statistics.devices["a"].loss is None
    assert list(statistics.curves.loss) == []


def test_memory_is_bounded_whatever_comes_and_goes():
    statistics = SessionStatistics("s")
    for number in range(MAX_GONE + 300):
        statistics.apply(joined(f"d{number}", number))
        statistics.apply(left(f"d{number}", number + 0.5, "ABORTED", "x" * 10_000))
        statistics.refuse("e" * 10_000, "NOT_FOUND", "y" * 10_000, number)
    assert len(statistics.devices) == MAX_GONE
    assert f"d{MAX_GONE + 299}" in statistics.devices
    assert statistics.refusals["NOT_FOUND"] == MAX_GONE + 300
    assert len(statistics.refused) == 50
    assert len(statistics.incidents) == 200
    assert all(len(h.text) + len(h.device) < 1_000 for h in (*statistics.incidents, *statistics.refused))


def test_a_change_of_the_cadence_or_of_the_form_is_told_with_the_reason():
    forms = (pb.CODEC_INT4, pb.CODEC_INT4, pb.CODEC_SPARSE_SIGN, pb.CODEC_SPARSE_SIGN, pb.CODEC_INT4)
    batches = (10, 10, 10, 5, 1, 1)
    statistics = statistics_of(
        *(
            committed(number, 1.0 * number, batches=before, cadence=pb.Cadence(batches=next_, reason="so", form=form))
            for number, (before, next_, form) in enumerate(zip(batches, batches[1:], forms, strict=False))
        )
    )
    assert [incident.text for incident in statistics.incidents] == [
        "exchanges in sparse1 after every 5 batches from now on: so",
        "exchanges after every batch from now on: so",
        "exchanges in int4 after every batch from now on: so",
    ]
    assert (statistics.form, statistics.every) == ("int4", 1)
    without = statistics_of(committed(0, 1.0, batches=5, cadence=pb.Cadence(batches=7, reason="so")))
    assert without.form == ""
    assert without.incidents[0].text == "exchanges after every 7 batches from now on: so"


def test_the_form_is_stored(tmp_path):
    statistics = SessionStatistics("s", form="sparse1")
    assert load_statistics("s", dump_statistics(statistics)).form == "sparse1"
    before = json.loads(dump_statistics(statistics))
    del before["totals"]["form"]
    assert load_statistics("s", json.dumps(before)).form == ""


def test_a_curve_keeps_its_shape_its_ends_and_its_size():
    curve = Curve(limit=64)
    for step in range(10_000):
        curve.add(step, step**2)
        assert len(list(curve)) <= 66
    points = list(curve)
    assert points[0] == (0, 0)
    assert points[-1] == (9_999, 9_999**2)
    assert all(value == step**2 for step, value in points)
    gaps = [b - a for (a, _), (b, _) in pairwise(points[:-1])]
    assert max(gaps) <= 2 * min(gaps)


def test_a_curve_that_goes_back_forgets_what_came_after():
    curve = Curve()
    for step in range(10):
        curve.add(step, 1.0)
    curve.add(5, 2.0)
    assert list(curve) == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0)]
    assert curve.since(3) == [(4, 1.0), (5, 2.0)]


def test_they_come_back_from_the_record_as_they_were(tmp_path):
    path = tmp_path / "record.sqlite"
    statistics = statistics_of(
        phase(pb.PHASE_TRAINING, 1.0),
        joined("a"),
        report("a", 0, 1.5, received=5, sent=6, saved=7),
        committed(0, 2.0, left_out=["b"]),
    )
    statistics.refuse("a", "INVALID_ARGUMENT", "a frame broke the contract", 3.0)
    record = Record(path)
    record.set_statistics(statistics)
    record.close()
    found = Record(path).statistics("s")
    statistics.devices["a"].end_membership()
    for passing in ("curves", "_first_report", "pace"):
        setattr(found, passing, getattr(statistics, passing))
    assert found == statistics


BUDGET = pb.PrivacyBudget(epsilon=4.0, delta=1e-5, unit="device")


def spent(device, step, epsilon):
    event = report(device, step, 1.0 + step)
    event.report.contribution.epsilon = epsilon
    return event


def test_epsilon_is_that_of_the_device_that_has_spent_most_and_goes_on_when_it_comes_back(tmp_path):
    events = [phase(pb.PHASE_TRAINING, 1.0), *(joined(device, budget=BUDGET) for device in "ab")]
    statistics = statistics_of(*events)
    assert statistics.epsilon is None
    assert str(statistics.privacy).startswith("privacy budget: epsilon 0 of 4 spent at delta 1e-05, for each device's")
    for event in (spent("a", 0, 1.0), spent("b", 0, 1.25)):
        statistics.apply(event)
    assert statistics.epsilon == 1.25
    record = Record(tmp_path / "record.sqlite")
    record.set_statistics(statistics)
    record.close()
    found = Record(tmp_path / "record.sqlite").statistics("s")
    assert (found.epsilon, found.budget) == (1.25, statistics.budget)
    for event in (left("b", 2.0, "OK", "tired"), spent("a", 1, 1.5)):
        found.apply(event)
    assert found.epsilon == 1.5


def test_epsilon_of_a_run_is_none_of_the_next():
    statistics = statistics_of(joined("a", budget=BUDGET), spent("a", 0, 1.0), joined("a"))
    assert (statistics.epsilon, statistics.budget, statistics.privacy.name) == (None, None, "plain")


def test_the_length_of_the_run_is_what_the_devices_that_are_there_say():
    statistics = statistics_of(joined("a"), joined("b"))
    assert statistics.run_steps is None
    assert (statistics.done, statistics.progress(0.0)) == (0, "step 0")
    statistics = statistics_of(joined("a", run_steps=60), joined("b", run_steps=100), joined("c"))
    assert statistics.run_steps == 100
    statistics.apply(left("b", 1.0, "OK", "stopped"))
    assert statistics.run_steps == 60
    statistics.apply(left("a", 2.0, "OK", "finished"))
    assert statistics.run_steps == 100  # nobody who is there says
    for step in (58, 59, 100):  # the last one averages what devices have of their own
        statistics.apply(committed(step, 3.0))
    assert statistics.progress(3.0) == "step 100 of 100"


def test_progress_is_in_batches_at_the_pace_of_the_last_minute():
    statistics = statistics_of(
        phase(pb.PHASE_TRAINING, 0.0),
        joined("a", run_steps=1_000, averages=True),
        *(committed(10 * i + 9, 5.0 * i, batches=10, correct=min(i, 3)) for i in range(10)),
    )
    assert (statistics.done, statistics.batches_per_s(45.0), statistics.averages) == (100, 2.0, True)
    assert statistics.progress(45.0) == "step 100 of 1,000, 8 min left, 2.0 batches/s, best accuracy 30.0% at step 39"
    assert "left" not in statistics.progress(200.0)  # it pauses
    statistics.apply(phase(pb.PHASE_ENDED, 46.0))
    assert statistics.progress(46.0) == "step 100 of 1,000, best accuracy 30.0% at step 39"


def test_progress_comes_back_from_the_record(tmp_path):
    statistics = statistics_of(joined("a", run_steps=1_000))
    record = Record(tmp_path / "record.sqlite")
    record.begin_session("s", SessionSettings())
    for step in range(50):
        event = committed(step, step / 2, correct=9 if step == 20 else 5)
        record.set_committed("s", StepRecord.of(event.step, event.time_s, statistics))
        statistics.apply(event)
    record.set_statistics(statistics)
    found = record.statistics("s")
    assert found.progress(24.5) == statistics.progress(24.5)
    assert found.best == (20, 0.9)
    # The best step may have been thinned away since, and an older release stored none.
    record._database.execute("DELETE FROM steps WHERE step = 20")
    assert record.statistics("s").best == (20, 0.9)
    (content,) = record._database.execute("SELECT content FROM statistics").fetchone()
    older = json.loads(content)
    del older["totals"]["best"]
    record._database.execute("UPDATE statistics SET content = ?", (json.dumps(older),))
    assert record.statistics("s").best == (0, 0.5)
