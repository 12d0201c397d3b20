import io

import pytest
from edgenewton.common.evaluation import Evaluation

from edge_client.cli import training_view
from edge_client.cli.training_view import LINE_EVERY_S, TrainingView
from edge_client.training.work import TrainedStep


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(monkeypatch, file, every_s=10.0, steps=12):
    """Return what is printed of the first steps of a run of twenty."""
    console = training_view.out.__class__()
    console._file = file
    console.is_interactive = file.isatty()
    monkeypatch.setattr(training_view, "out", console)
    now = 0.0
    with TrainingView("gateway-7", 20, clock=lambda: now) as view:
        for step in range(steps):
            now += every_s
            evaluation = Evaluation(step + 1, 20, 0.5) if step in (0, 5) else None
            view(TrainedStep(step, 1 / (step + 1), 0.5, devices=2, evaluation=evaluation))
    return file.getvalue()


def test_where_there_is_no_terminal_a_line_comes_now_and_then(monkeypatch):
    lines = show(monkeypatch, io.StringIO()).splitlines()
    assert len(lines) == 12 * 10 // LINE_EVERY_S
    assert lines[0] == "gateway-7: step 3 of 20, best accuracy 5.0% at step 0, loss 0.5000, accuracy 5.0%"
    assert lines[-1] == (
        "gateway-7: step 12 of 20, 80 s left, 0.10 batches/s, best accuracy 30.0% at step 5, loss 0.5000, "
        "accuracy 30.0%"
    )
    assert all("\x1b" not in line for line in lines)


def test_a_training_that_is_short_prints_none(monkeypatch):
    assert show(monkeypatch, io.StringIO(), every_s=0.1) == ""


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    text = show(monkeypatch, Terminal())
    assert "gateway-7" in text
    assert "step 12 of 20, 80 s left" in text


@pytest.mark.parametrize("steps", [21, 25])
def test_averages_at_the_end_are_no_batches_of_the_run(monkeypatch, steps):
    assert "step 20 of 20" in show(monkeypatch, io.StringIO(), every_s=40.0, steps=steps).splitlines()[-1]


def test_what_a_privacy_budget_has_cost_stands_in_the_line(monkeypatch):
    file = io.StringIO()
    console = training_view.out.__class__()
    console._file = file
    times = iter([0.0, 40.0, 40.0])
    with TrainingView("gateway-7", 20, 4.0, console=console, clock=lambda: next(times)) as view:
        view(TrainedStep(0, 1.0, 0.5, devices=2, epsilon=1.234))
    assert file.getvalue().rstrip().endswith("loss 0.5000, epsilon 1.23 of 4")
