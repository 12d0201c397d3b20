"""Between protobuf messages and the state machine's own types."""

import time

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import fingerprint_from_proto

from coordinator import session as s
from coordinator.refusal import RefusedError, Status
from coordinator.step import Contribution, Evaluation

PHASES = {
    s.Phase.GATHERING: pb.PHASE_GATHERING,
    s.Phase.TRAINING: pb.PHASE_TRAINING,
    s.Phase.ENDED: pb.PHASE_ENDED,
    s.Phase.ABORTED: pb.PHASE_ABORTED,
}
SNAPSHOT_ACTIONS = {
    s.SnapshotAction.NONE: pb.SNAPSHOT_ACTION_NONE,
    s.SnapshotAction.UPLOAD: pb.SNAPSHOT_ACTION_UPLOAD,
    s.SnapshotAction.DOWNLOAD: pb.SNAPSHOT_ACTION_DOWNLOAD,
}


def joining_from_proto(request: pb.JoinRequest) -> s.Joining:
    """Return what a device says of itself.

    Raises:
        RefusedError: the device id is empty or the fingerprint is wrong.

    """
    if not request.device:
        raise RefusedError(Status.INVALID_ARGUMENT, "a device needs an id to join")
    try:
        fingerprint = fingerprint_from_proto(request.tensors)
    except ValueError as error:
        raise RefusedError(Status.INVALID_ARGUMENT, f"device {request.device!r}: {error}") from None
    return s.Joining(
        device=request.device,
        fingerprint=fingerprint,
        options=dict(request.options),
        weights_digest=request.weights_digest,
        training_samples=request.training_samples,
        protocol_version=request.protocol_version,
        software=request.software,
    )


def contribution_from_proto(samples: int, message: pb.Contribution) -> Contribution:
    """Return a device's contribution."""
    evaluation = None
    if message.HasField("evaluation"):
        e = message.evaluation
        evaluation = Evaluation(e.correct, e.samples, e.loss)
    return Contribution(samples, message.loss, evaluation)


def contribution_to_proto(contribution: Contribution) -> pb.Contribution:
    """Return the message for a device's contribution."""
    return pb.Contribution(loss=contribution.loss, evaluation=evaluation_to_proto(contribution.evaluation))


def evaluation_to_proto(evaluation: Evaluation | None) -> pb.Evaluation | None:
    """Return the message for an evaluation, if there is one."""
    if evaluation is None:
        return None
    return pb.Evaluation(correct=evaluation.correct, samples=evaluation.samples, loss=evaluation.loss)


def commit_to_proto(decision: s.StepCommitted) -> pb.Commit:
    """Return the message that members are sent when a step is committed."""
    return pb.Commit(
        samples=decision.samples,
        devices=decision.devices,
        left_out=decision.left_out,
        loss=decision.loss,
    )


def event_for(
    session: s.Session, decision: s.Decision, bytes_received: int = 0, bytes_sent: int = 0
) -> pb.SessionEvent | None:
    """Return what user interfaces are told of a decision, if anything.

    `bytes_received` and `bytes_sent` are what the coordinator has exchanged with the device that it is about.
    """
    event = pb.SessionEvent(time_s=time.time(), session=session.name)
    match decision:
        case s.DeviceJoined(membership):
            joining = membership.joining
            event.joined.device = joining.device
            event.joined.training_samples = joining.training_samples
            event.joined.software = joining.software
        case s.DeviceRemoved(device, _, reason):
            event.left.CopyFrom(
                pb.DeviceLeft(device=device, reason=reason, bytes_received=bytes_received, bytes_sent=bytes_sent)
            )
        case s.DeviceReported(device, step, contribution):
            event.report.CopyFrom(
                pb.DeviceReport(
                    device=device,
                    step=step,
                    samples=contribution.samples,
                    contribution=contribution_to_proto(contribution),
                    bytes_received=bytes_received,
                    bytes_sent=bytes_sent,
                )
            )
        case s.StepCommitted():
            event.step.CopyFrom(
                pb.StepCommitted(
                    step=decision.step,
                    commit=commit_to_proto(decision),
                    evaluation=evaluation_to_proto(decision.evaluation),
                    seconds=decision.seconds,
                )
            )
        case s.PhaseChanged(phase, reason):
            event.phase.CopyFrom(
                pb.PhaseChanged(phase=PHASES[phase], reason=reason, settings=session.settings.to_proto())
            )
        case s.SliceReady():
            return None
    return event
