"""Events as a coordinator tells them."""

from edgenewton.v1 import exchange_pb2 as pb

from coordinator.session.settings import SessionSettings


def phase(kind, time_s=0.0, session=""):
    settings = SessionSettings(codec="int8").to_proto()
    return pb.SessionEvent(
        time_s=time_s, session=session, phase=pb.PhaseChanged(phase=kind, reason="because", settings=settings)
    )


def joined(device, time_s=0.0, **fields):
    told = pb.DeviceJoined(device=device, training_samples=7, software="x 1", **fields)
    return pb.SessionEvent(time_s=time_s, joined=told)


def report(device, step, time_s, received=0, sent=0, saved=0, loss=1.0, *, skipped=False):
    event = pb.DeviceReport(device=device, step=step, bytes_received=received, bytes_sent=sent, bytes_saved=saved)
    event.contribution.loss = loss
    event.skipped = skipped
    return pb.SessionEvent(time_s=time_s, report=event)


def left(device, time_s, status, reason, **use):
    return pb.SessionEvent(time_s=time_s, left=pb.DeviceLeft(device=device, status=status, reason=reason, **use))


def committed(step, time_s, seconds=0.2, loss=0.5, left_out=(), correct=None, batches=1, cadence=None):
    event = pb.StepCommitted(step=step, seconds=seconds)
    event.commit.CopyFrom(
        pb.Commit(samples=16, devices=2, loss=loss, left_out=left_out, batches=batches, cadence=cadence)
    )
    if correct is not None:
        event.evaluation.CopyFrom(pb.Evaluation(correct=correct, samples=10))
    return pb.SessionEvent(time_s=time_s, step=event)


def three_sessions():
    """Yield what happens to two devices in three sessions of one step each; a step costs 100 bytes up and 80 down."""
    for session, step in (("s", 0), ("t", 1), ("u", 2)):
        for device in "ab":
            yield joined(device)
        yield phase(pb.PHASE_TRAINING, 100.0, session)
        for device in "ab":
            yield report(device, step, 0.0, received=100, loss=0.5)
        yield committed(step, 101.0 + step, loss=0.25, correct=5 + step)
        for device in "ab":
            yield left(device, 0.0, "OK", "finished", bytes_received=100, bytes_sent=80)
