"""Between protobuf messages and the state machine's own types."""

import time

from edgenewton.v1 import PROTOCOL_VERSION
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import fingerprint_from_proto

from coordinator.serving.link_use import LinkUse
from coordinator.session import decisions as d
from coordinator.session.members import Joining, Standing
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.session import Session
from coordinator.session.step import Contribution, Evaluation

MAX_ID_LENGTH = 128
"""Characters of a device's id."""

PHASES = {
    d.Phase.GATHERING: pb.PHASE_GATHERING,
    d.Phase.TRAINING: pb.PHASE_TRAINING,
    d.Phase.ENDED: pb.PHASE_ENDED,
    d.Phase.ABORTED: pb.PHASE_ABORTED,
}
SNAPSHOT_ACTIONS = {
    Standing.ACTIVE: pb.SNAPSHOT_ACTION_NONE,
    Standing.LAGGING: pb.SNAPSHOT_ACTION_NONE,
    Standing.HEALING: pb.SNAPSHOT_ACTION_DOWNLOAD,
}


def joining_from_proto(request: pb.JoinRequest) -> Joining:
    """Return what a device says of itself.

    Raises:
        RefusedError: the device id, the version or the fingerprint is wrong.

    """
    if not request.device:
        raise RefusedError(Status.INVALID_ARGUMENT, "a device needs an id to join")
    if len(request.device) > MAX_ID_LENGTH or not request.device.isprintable():
        shown = request.device[:MAX_ID_LENGTH]
        raise RefusedError(
            Status.INVALID_ARGUMENT,
            f"a device's id has up to {MAX_ID_LENGTH} printable characters; this one begins {shown!r}",
        )
    # Before anything that another version may have changed.
    if request.protocol_version != PROTOCOL_VERSION:
        raise RefusedError(
            Status.FAILED_PRECONDITION,
            f"device {request.device!r} speaks protocol version {request.protocol_version} and the coordinator version "
            f"{PROTOCOL_VERSION}; install the same release on both",
        )
    try:
        fingerprint = fingerprint_from_proto(request.tensors)
    except ValueError as error:
        raise RefusedError(Status.INVALID_ARGUMENT, f"device {request.device!r}: {error}") from None
    return Joining(
        device=request.device,
        fingerprint=fingerprint,
        options=dict(request.options),
        weights_digest=request.weights_digest,
        training_samples=request.training_samples,
        software=request.software,
        codecs=tuple(request.codecs) or (pb.CODEC_FP32, pb.CODEC_FP16, pb.CODEC_BF16),
        next_step=request.next_step if request.HasField("next_step") else None,
        token=request.token,
    )


def contribution_from_proto(samples: int, message: pb.Contribution) -> Contribution:
    """Return a device's contribution."""
    evaluation = None
    if message.HasField("evaluation"):
        e = message.evaluation
        evaluation = Evaluation(e.correct, e.samples, e.loss)
    return Contribution(samples, message.loss, evaluation, message.weights_digest)


def contribution_to_proto(contribution: Contribution) -> pb.Contribution:
    """Return the message for a device's contribution."""
    return pb.Contribution(loss=contribution.loss, evaluation=evaluation_to_proto(contribution.evaluation))


def evaluation_to_proto(evaluation: Evaluation | None) -> pb.Evaluation | None:
    """Return the message for an evaluation, if there is one."""
    if evaluation is None:
        return None
    return pb.Evaluation(correct=evaluation.correct, samples=evaluation.samples, loss=evaluation.loss)


def commit_to_proto(decision: d.StepCommitted) -> pb.Commit:
    """Return the message that members are sent when a step is committed."""
    return pb.Commit(
        samples=decision.samples,
        devices=decision.devices,
        left_out=decision.left_out,
        loss=decision.loss,
    )


def event_for(session: Session, decision: d.Decision, use: LinkUse | None = None) -> pb.SessionEvent | None:
    """Return what user interfaces are told of a decision, if anything.

    `use` is that of the link to the device that it is about.
    """
    use = use or LinkUse()
    event = pb.SessionEvent(time_s=time.time(), session=session.name)
    match decision:
        case d.DeviceJoined(member):
            joining = member.joining
            event.joined.device = joining.device
            event.joined.training_samples = joining.training_samples
            event.joined.software = joining.software
        case d.DeviceRemoved(device, status, reason):
            event.left.CopyFrom(
                pb.DeviceLeft(
                    device=device,
                    reason=reason,
                    bytes_received=use.received,
                    bytes_sent=use.sent,
                    bytes_saved=use.saved,
                    status=status.name,
                )
            )
        case d.DeviceReported(device, step, contribution):
            event.report.CopyFrom(
                pb.DeviceReport(
                    device=device,
                    step=step,
                    samples=contribution.samples,
                    contribution=contribution_to_proto(contribution),
                    bytes_received=use.received,
                    bytes_sent=use.sent,
                    bytes_saved=use.saved,
                )
            )
        case d.StepCommitted():
            event.step.CopyFrom(
                pb.StepCommitted(
                    step=decision.step,
                    commit=commit_to_proto(decision),
                    evaluation=evaluation_to_proto(decision.evaluation),
                    seconds=decision.seconds,
                )
            )
        case d.PhaseChanged(phase, reason):
            event.phase.CopyFrom(
                pb.PhaseChanged(phase=PHASES[phase], reason=reason, settings=session.settings.to_proto())
            )
        case d.DeviceHealing(device, step, reason):
            event.healing.CopyFrom(pb.DeviceHealing(device=device, step=step, reason=reason))
        case d.DeviceRecovered(device, step):
            event.recovered.CopyFrom(pb.DeviceRecovered(device=device, step=step))
        case d.SliceReady() | d.StepSet():
            return None
    return event
