"""The session state machine: membership, steps, deadlines. Plain Python: it is given events and the time.

Every call may leave decisions behind, which the caller takes and carries out in their order. Phases:

    GATHERING --all devices joined--> TRAINING --all devices finished--> ENDED
        |                                |
        +--------- a deadline, too few devices, abort() ---------> ABORTED
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from edgenewton.v1 import PROTOCOL_VERSION
from edgenewton.v1.codec import Float32Array
from edgenewton.v1.fingerprint import TensorSpec, first_difference, first_option_difference

from coordinator.refusal import RefusedError, Status
from coordinator.settings import SessionSettings
from coordinator.step import Contribution, Evaluation, SliceKey, Step


class Phase(Enum):
    """Where a session is in its life."""

    GATHERING = "gathering"
    TRAINING = "training"
    ENDED = "ended"
    ABORTED = "aborted"


class SnapshotAction(Enum):
    """What a device does about the session's snapshot after it joined."""

    NONE = "none"
    UPLOAD = "upload"
    DOWNLOAD = "download"


@dataclass(frozen=True)
class Joining:
    """What a device says of itself when it joins."""

    device: str
    fingerprint: tuple[TensorSpec, ...]
    options: Mapping[str, str]
    weights_digest: bytes
    training_samples: int = 0
    protocol_version: int = PROTOCOL_VERSION
    software: str = ""


@dataclass(frozen=True)
class Membership:
    """A device's place in the session."""

    joining: Joining
    token: str
    first_step: int
    snapshot: SnapshotAction


@dataclass(frozen=True)
class SliceReady:
    """Decision: send the mean of a slice to all members."""

    step: int
    key: SliceKey
    values: Float32Array


@dataclass(frozen=True)
class StepCommitted:
    """Decision: tell all members that the step is committed."""

    step: int
    samples: int
    devices: int
    left_out: tuple[str, ...]
    loss: float
    evaluation: Evaluation | None
    seconds: float


@dataclass(frozen=True)
class DeviceJoined:
    """Decision: announce a new member."""

    membership: Membership


@dataclass(frozen=True)
class DeviceRemoved:
    """Decision: end the stream of a former member, with a status and a reason."""

    device: str
    status: Status
    reason: str


@dataclass(frozen=True)
class DeviceReported:
    """Decision: announce a complete contribution."""

    device: str
    step: int
    contribution: Contribution


@dataclass(frozen=True)
class PhaseChanged:
    """Decision: announce a new phase; after ENDED and ABORTED there are no members left."""

    phase: Phase
    reason: str


Decision = SliceReady | StepCommitted | DeviceJoined | DeviceRemoved | DeviceReported | PhaseChanged


class Session:
    """One model's training: who takes part, which step is on, what is to be sent."""

    def __init__(self, name: str, settings: SessionSettings) -> None:
        self.name = name
        self.settings = settings
        self.phase = Phase.GATHERING
        self.reason = ""
        self.members: dict[str, Membership] = {}
        self.fingerprint: tuple[TensorSpec, ...] = ()
        self.step = Step(settings.first_step)
        self._options: Mapping[str, str] = {}
        self._weights_digest = b""
        self._gathering_since: float | None = None
        self._active_at: float | None = None
        self._left_out: list[str] = []
        self._someone_finished = False
        self._decisions: list[Decision] = []

    @property
    def is_over(self) -> bool:
        """Whether the session has ended or was aborted."""
        return self.phase in (Phase.ENDED, Phase.ABORTED)

    def take_decisions(self) -> list[Decision]:
        """Return what is to be carried out since the last call, in order."""
        decisions, self._decisions = self._decisions, []
        return decisions

    # ------------------------------------------------------------------ membership

    def join(self, joining: Joining, now: float) -> Membership:
        """Give a device a place.

        Raises:
            RefusedError: the session has begun or ended, the id is taken, or version, model or options differ.

        """
        self._check_joining(joining)
        is_first = not self.members
        if is_first:
            self.fingerprint = joining.fingerprint
            self._options = joining.options
            self._weights_digest = joining.weights_digest
            self._gathering_since = now
        if is_first:
            snapshot = SnapshotAction.UPLOAD if self.settings.devices > 1 else SnapshotAction.NONE
        elif joining.weights_digest == self._weights_digest:
            snapshot = SnapshotAction.NONE
        else:
            snapshot = SnapshotAction.DOWNLOAD
        membership = Membership(joining, secrets.token_hex(16), self.step.number, snapshot)
        self.members[joining.device] = membership
        self._active_at = now
        self._decide(DeviceJoined(membership))
        if len(self.members) == self.settings.devices:
            self._enter(Phase.TRAINING, f"all {self.settings.devices} devices have joined")
            self._advance(now)
        return membership

    def check_member(self, device: str) -> None:
        """Check that a device has a place.

        Raises:
            RefusedError: it has none; the text says how the session ended, if it did.

        """
        if device not in self.members:
            self._refuse_if_over()
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                f"device {device!r} is not in session {self.name!r}; join it first",
            )

    def finish(self, device: str, now: float) -> None:
        """Take back the place of a device that has done all its steps; the session never aborts for want of it."""
        if self.members.pop(device, None) is None:
            return
        self._decide(DeviceRemoved(device, Status.OK, "finished"))
        self._someone_finished = True
        if not self.members:
            self._finish(Phase.ENDED, "all devices have finished")
        else:
            self._advance(now)

    def remove(self, device: str, reason: str, now: float, status: Status = Status.OK) -> None:
        """Take a device's place away: it left, its stream broke, or it broke the contract.

        The session goes on while its quorum is left. Nothing happens if the device is no member.
        """
        if self.members.pop(device, None) is None:
            return
        self._decide(DeviceRemoved(device, status, reason))
        if self.phase is Phase.GATHERING:
            # What it contributed is added up already and cannot be taken out again.
            if self.step.heard_from(device):
                self._finish(Phase.ABORTED, f"device {device!r} left before the session began: {reason}")
        elif len(self.members) < self.settings.required:
            self._finish(
                Phase.ABORTED,
                f"device {device!r} left in step {self.step.number}: {reason}; {len(self.members)} devices remain "
                f"where at least {self.settings.required} are needed",
            )
        else:
            self._left_out.append(device)
            self._advance(now)

    def abort(self, reason: str) -> None:
        """End the session early; every device is told why."""
        if not self.is_over:
            self._finish(Phase.ABORTED, reason)

    # ------------------------------------------------------------------ steps

    def contribute(self, device: str, step: int, samples: int, key: SliceKey, values: Float32Array, now: float) -> None:
        """Take one slice of a member's tensor.

        Raises:
            RefusedError: it is for another step, or the device sent it already.

        """
        self._check_step(device, step)
        self._active_at = now
        try:
            self.step.add(device, samples, key, values, now)
        except RefusedError as error:
            spec = self.fingerprint[key.tensor]
            raise RefusedError(error.status, f"device {device!r}, step {step}, {spec}: {error.reason}") from None

    def complete(self, device: str, step: int, contribution: Contribution, now: float) -> None:
        """Take the end of a member's contribution.

        Raises:
            RefusedError: it is for another step, came twice, or the device did not send what the others sent.

        """
        self._check_step(device, step)
        self._active_at = now
        try:
            differing = self.step.complete(device, contribution, now)
        except RefusedError as error:
            raise RefusedError(error.status, f"device {device!r}, step {step}: {error.reason}") from None
        if differing is not None:
            raise RefusedError(
                Status.INVALID_ARGUMENT,
                f"device {device!r}, step {step}: it and the first complete device differ in whether they sent "
                f"the {self.fingerprint[differing.tensor]} (slice at {differing.offset})",
            )
        self._decide(DeviceReported(device, step, contribution))

    def advance(self, now: float) -> None:
        """Decide what has become ready; call it after the contributions of one frame."""
        if self.phase is Phase.TRAINING:
            self._advance(now)

    def tick(self, now: float) -> None:
        """Act on deadlines that have passed."""
        settings = self.settings
        if self.phase is Phase.GATHERING and self._gathering_since is not None:
            if now >= self._gathering_since + settings.join_deadline_s:
                self._finish(
                    Phase.ABORTED,
                    f"{len(self.members)} of {settings.devices} devices joined within "
                    f"{settings.join_deadline_s:g} s: {', '.join(sorted(self.members)) or 'none is left'}",
                )
        elif self.phase is Phase.TRAINING:
            began_at = self.step.began_at
            if began_at is not None and now >= began_at + settings.step_deadline_s:
                self._close_late_step(now)
            elif self._active_at is not None and now >= self._active_at + settings.idle_deadline_s:
                self._finish(Phase.ABORTED, f"no device sent anything for {settings.idle_deadline_s:g} s")

    # ------------------------------------------------------------------ inner workings

    def _decide(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def _enter(self, phase: Phase, reason: str) -> None:
        self.phase = phase
        self.reason = reason
        self._decide(PhaseChanged(phase, reason))

    def _finish(self, phase: Phase, reason: str) -> None:
        status = Status.OK if phase is Phase.ENDED else Status.ABORTED
        for device in list(self.members):
            del self.members[device]
            self._decide(DeviceRemoved(device, status, f"session {self.name!r} {phase.value}: {reason}"))
        self._enter(phase, reason)

    def _refuse_if_over(self) -> None:
        if self.is_over:
            raise RefusedError(
                Status.FAILED_PRECONDITION, f"session {self.name!r} is {self.phase.value}: {self.reason}"
            )

    def _check_joining(self, joining: Joining) -> None:
        self._refuse_if_over()
        who = f"device {joining.device!r} cannot join session {self.name!r}"
        if joining.protocol_version != PROTOCOL_VERSION:
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                f"{who}: it speaks protocol version {joining.protocol_version} and the coordinator version "
                f"{PROTOCOL_VERSION}; install the same release on both",
            )
        if joining.device in self.members:
            raise RefusedError(
                Status.ALREADY_EXISTS,
                f"{who}: a live device with this id is in it; give each device its own id",
            )
        if self.members:
            difference = first_difference(self.fingerprint, joining.fingerprint)
            if difference:
                raise RefusedError(Status.FAILED_PRECONDITION, f"{who}: its model differs: {difference}")
            difference = first_option_difference(self._options, joining.options)
            if difference:
                raise RefusedError(Status.FAILED_PRECONDITION, f"{who}: {difference}")
        if self.phase is Phase.TRAINING:
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                f"{who}: it began with {self.settings.devices} devices and is at step {self.step.number}",
            )

    def _check_step(self, device: str, step: int) -> None:
        if self._someone_finished and len(self.members) < self.settings.required:
            raise RefusedError(
                Status.ABORTED,
                f"device {device!r} goes on with step {step}, but others have finished: all devices of a session must "
                "take the same number of steps",
            )
        if step != self.step.number:
            raise RefusedError(
                Status.INVALID_ARGUMENT,
                f"device {device!r} sent a frame of step {step}; the session is at step {self.step.number}",
            )

    def _advance(self, now: float) -> None:
        for key, values in self.step.ready(self.members):
            self._decide(SliceReady(self.step.number, key, values))
        if self.members and self.step.is_complete(self.members):
            self._commit(now)

    def _commit(self, now: float) -> None:
        step = self.step
        contributions = list(step.contributions.values())
        samples = sum(contribution.samples for contribution in contributions)
        evaluations = [c.evaluation for c in contributions if c.evaluation is not None]
        self._decide(
            StepCommitted(
                step=step.number,
                samples=samples,
                devices=len(contributions),
                left_out=tuple(self._left_out),
                loss=sum(c.loss * c.samples for c in contributions) / samples,
                evaluation=_add_up(evaluations),
                seconds=now - (step.began_at if step.began_at is not None else now),
            )
        )
        self._left_out = []
        self.step = Step(step.number + 1)

    def _close_late_step(self, now: float) -> None:
        late = [device for device in self.members if device not in self.step.contributions]
        in_time = len(self.members) - len(late)
        wait = f"{self.settings.step_deadline_s:g} s"
        if in_time < self.settings.required:
            self._finish(
                Phase.ABORTED,
                f"step {self.step.number}: {in_time} devices contributed within {wait} where at least "
                f"{self.settings.required} are needed; waited for {', '.join(map(repr, late))}",
            )
            return
        for device in late:
            reason = f"device {device!r} was left out of step {self.step.number}: it took longer than {wait}"
            del self.members[device]
            self._left_out.append(device)
            self._decide(DeviceRemoved(device, Status.DEADLINE_EXCEEDED, reason))
        self._advance(now)


def _add_up(evaluations: list[Evaluation]) -> Evaluation | None:
    samples = sum(evaluation.samples for evaluation in evaluations)
    if not samples:
        return None
    loss = sum(evaluation.loss * evaluation.samples for evaluation in evaluations) / samples
    return Evaluation(sum(evaluation.correct for evaluation in evaluations), samples, loss)
