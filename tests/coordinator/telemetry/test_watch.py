import pytest
from edgenewton.v1 import exchange_pb2 as pb
from rich.console import Console

from coordinator.telemetry.watch import SessionView, Traffic


def report(device: str, step: int, received: int, sent: int, session: str = "s") -> pb.SessionEvent:
    contribution = pb.Contribution(loss=0.5)
    return pb.SessionEvent(
        session=session,
        report=pb.DeviceReport(
            device=device, step=step, contribution=contribution, bytes_received=received, bytes_sent=sent
        ),
    )


def committed(step: int, correct: int, time_s: float) -> pb.SessionEvent:
    evaluation = pb.Evaluation(correct=correct, samples=10)
    commit = pb.Commit(loss=0.25)
    return pb.SessionEvent(
        time_s=time_s, session="s", step=pb.StepCommitted(step=step, commit=commit, evaluation=evaluation)
    )


@pytest.fixture
def view():
    """Two devices, one step in each of two sessions; a step costs 100 bytes up and 80 down."""
    view = SessionView()
    phase = pb.PhaseChanged(phase=pb.PHASE_TRAINING, reason="all have joined")
    for session, step in (("s", 0), ("t", 1), ("u", 2)):
        for device in "ab":
            view.apply(pb.SessionEvent(joined=pb.DeviceJoined(device=device, training_samples=9)))
        view.apply(pb.SessionEvent(time_s=100.0, session=session, phase=phase))
        for device in "ab":
            view.apply(report(device, step, received=100, sent=0, session=session))
        view.apply(committed(step, correct=5 + step, time_s=101.0 + step))
        for device in "ab":
            left = pb.DeviceLeft(device=device, reason="finished", bytes_received=100, bytes_sent=80)
            view.apply(pb.SessionEvent(left=left))
    return view


def test_bytes_add_up_over_sessions(view):
    assert view.traffic[1] == Traffic(sent=100, received=80)
    assert view.traffic[2] == Traffic(sent=200, received=160)
    assert {state.sent_before for state in view.devices.values()} == {300}


def test_accuracy_belongs_to_the_batches_before_the_evaluation(view):
    assert view.accuracy == {0: 0.5, 1: 0.6, 2: 0.7}
    assert view.seconds == {1: 1.0, 2: 2.0, 3: 3.0}
    assert view.batches == 3


def test_a_person_can_read_it(view):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(view)
    text = console.export_text()
    assert "u: training  step 2  loss 0.2500  accuracy 70.0%" in text
    assert [line.split()[1] for line in text.splitlines() if "finished" in line] == ["a", "b"]


def test_what_went_wrong_is_shown_with_the_device(view):
    reason = "device 'b': nothing was heard from it for 20 s"
    view.apply(pb.SessionEvent(time_s=110.0, left=pb.DeviceLeft(device="b", status="DEADLINE_EXCEEDED", reason=reason)))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(view)
    assert f"b: {reason}" in console.export_text()
