import math

import pytest
from edgenewton.v1 import exchange_pb2 as pb
from rich.console import Console
from session_events import committed, joined, left, phase, report, three_sessions

from coordinator.telemetry.terminal import TerminalView


@pytest.fixture
def view():
    view = TerminalView()
    for event in three_sessions():
        view.apply(event)
    return view


def printed(view, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(view)
    return console.export_text()


def test_a_person_can_read_it(view):
    text = printed(view, width=100)
    assert "u: training  step 2  loss 0.2500  accuracy 70.0%" in text
    assert [line.split()[1] for line in text.splitlines() if "finished" in line] == ["a", "b"]


def test_bytes_are_those_of_all_sessions_from_where_the_device_stands(view):
    view.apply(report("a", 3, 104.0, received=2_000_000))
    (line,) = [line for line in printed(view).splitlines() if " training " in line and "│" in line]
    assert [cell.strip() for cell in line.split("│")[-3:-1]] == ["2.00 MB", "0.00 MB"]


def test_what_went_wrong_is_shown_with_the_device(view):
    reason = "device 'b': nothing was heard from it for 20 s"
    view.apply(left("b", 110.0, "DEADLINE_EXCEEDED", reason))
    assert f"b: {reason}" in printed(view)


def test_skipped_batches_are_shown_with_the_others(view):
    view.apply(report("a", 3, 104.0, skipped=True))
    text = printed(view)
    (line,) = [line for line in text.splitlines() if " training " in line and "│" in line]
    assert line.split("│")[4].strip() == "3 (1 skipped)"
    assert "a: skipped its batch of step 3: it could not be used" in text


def test_how_often_and_in_which_form_devices_exchange_is_shown(view):
    assert "moves in" not in printed(view)
    cadence = pb.Cadence(batches=10, reason="it is slow", form=pb.CODEC_SPARSE_SIGN)
    view.apply(committed(12, 104.0, batches=10, cadence=cadence))
    assert "10 batches an exchange  moves in sparse1" in printed(view)


def test_why_a_device_left_is_its_state(view):
    view.apply(left("b", 110.0, "OK", "stopped with Ctrl-C"))
    text = printed(view)
    assert "stopped with Ctrl-C" in text
    assert "gone" not in text


def test_a_loss_that_is_no_number_is_shown_as_such():
    view = TerminalView()
    for event in (
        phase(pb.PHASE_TRAINING, session="s"),
        committed(0, 1.0, loss=0.25),
        committed(1, 2.0, loss=math.nan),
    ):
        view.apply(event)
    assert "s: training  step 1  loss nan" in printed(view)


def test_what_was_spent_of_a_privacy_budget_is_shown():
    view = TerminalView()
    own = report("a", 0, 101.0)
    own.report.contribution.epsilon = 1.234
    budget = pb.PrivacyBudget(epsilon=4.0, delta=1e-5, unit="device")
    for event in (phase(pb.PHASE_TRAINING, 100.0), joined("a", 100.0, budget=budget), own):
        view.apply(event)
    assert "epsilon 1.23 of 4" in printed(view)
    figures = view.figures()
    assert figures["privacy"]["mode"] == "privacy budget"
    assert (figures["privacy"]["epsilon"], figures["devices"][0]["epsilon"]) == (1.234, 1.234)


def test_how_far_the_run_is_is_shown_and_of_which_weights_the_accuracy_is():
    view = TerminalView()
    view.apply(joined("a", run_steps=3_000, averages=True))
    view.apply(phase(pb.PHASE_TRAINING, 100.0, "s"))
    view.apply(committed(858, 101.0, correct=9))
    text = printed(view)
    assert "accuracy 90.0% (averaged weights)" in text
    assert "step 859 of 3,000, best accuracy 90.0% at step 858" in text


def test_of_a_session_with_masks_no_devices_own_loss_is_shown():
    view = TerminalView()
    began = phase(pb.PHASE_TRAINING, 100.0)
    began.phase.settings.secure_aggregation.bits = 8
    own = report("a", 0, 101.0)
    own.report.contribution.loss = math.nan
    for event in (began, joined("a", 100.0), own):
        view.apply(event)
    text = printed(view)
    assert "masked: sums only" in text
    (line,) = [line for line in text.splitlines() if line.startswith("│ a ")]
    assert [cell.strip() for cell in line.split("│")][5] == "masked"
    assert view.figures()["masked"]
