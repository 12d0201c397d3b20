"""What is told of a session's decisions: the events for those who watch it."""

import time

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import form_to_proto
from edgenewton.v1.evaluation import evaluation_to_proto
from edgenewton.v1.privacy_options import AgreedBudget

from coordinator.session import decisions as d
from coordinator.session.cadence import Cadence
from coordinator.session.session import Session
from coordinator.session.step import Contribution
from coordinator.telemetry.link_use import LinkUse

PHASES = {
    d.Phase.GATHERING: pb.PHASE_GATHERING,
    d.Phase.TRAINING: pb.PHASE_TRAINING,
    d.Phase.ENDED: pb.PHASE_ENDED,
    d.Phase.ABORTED: pb.PHASE_ABORTED,
}


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
            event.joined.averages = joining.options.get("averaging", "0") not in ("0", "0.0")
            if joining.run_steps is not None:
                event.joined.run_steps = joining.run_steps
            budget = AgreedBudget.of(joining.options)
            if budget is not None:
                event.joined.budget.CopyFrom(pb.PrivacyBudget(**vars(budget)))
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
                    step=step + contribution.batches - 1,
                    samples=contribution.weight if contribution.numbers is None else 0,
                    contribution=_contribution_to_proto(contribution),
                    bytes_received=use.received,
                    bytes_sent=use.sent,
                    bytes_saved=use.saved,
                    skipped=contribution.samples is None,
                )
            )
        case d.StepCommitted():
            event.step.CopyFrom(step_to_proto(decision))
        case d.PhaseChanged(phase, reason):
            event.phase.CopyFrom(
                pb.PhaseChanged(phase=PHASES[phase], reason=reason, settings=session.settings.to_proto())
            )
        case d.DeviceHealing(device, step, reason, wait_s=wait_s):
            event.healing.CopyFrom(pb.DeviceHealing(device=device, step=step, reason=reason, wait_s=wait_s))
        case d.DeviceRecovered(device, step):
            event.recovered.CopyFrom(pb.DeviceRecovered(device=device, step=step))
        case d.DeviceUnlike(device, step, reason, times):
            event.unlike.CopyFrom(pb.DeviceUnlike(device=device, step=step, reason=reason, times=times))
        case d.SliceReady() | d.StepSet() | d.ModelChanged():
            return None
    return event


def step_to_proto(decision: d.StepCommitted) -> pb.StepCommitted:
    """Return what those who watch are told of a committed step."""
    return pb.StepCommitted(
        step=decision.last_batch,
        commit=commit_to_proto(decision),
        evaluation=evaluation_to_proto(decision.evaluation),
        seconds=decision.seconds,
    )


def commit_to_proto(decision: d.StepCommitted) -> pb.Commit:
    """Return what its members are told of a committed step."""
    return pb.Commit(
        samples=decision.samples,
        devices=decision.devices,
        left_out=decision.left_out,
        loss=decision.loss,
        batches=decision.batches,
        counted_slices=decision.counted_slices,
        cadence=None if decision.cadence is None else _cadence_to_proto(decision.cadence),
        alignment=pb.Alignment(reason=decision.alignment) if decision.alignment else None,
    )


def _cadence_to_proto(cadence: Cadence) -> pb.Cadence:
    return pb.Cadence(batches=cadence.batches, reason=cadence.reason, form=form_to_proto(cadence.form))


def _contribution_to_proto(contribution: Contribution) -> pb.Contribution:
    return pb.Contribution(
        loss=contribution.loss,
        evaluation=evaluation_to_proto(contribution.evaluation),
        batches=contribution.batches,
        epsilon=contribution.epsilon,
    )
