"""The session state machine: membership, steps, deadlines. Plain Python: it is given events and the time.

Every call may leave decisions behind, which the caller takes and carries out in their order. Phases:

    GATHERING --all devices joined--> TRAINING --all devices finished--> ENDED
        |                                |
        +------ a deadline passed without the quorum, abort() ------> ABORTED

A member is ACTIVE, LAGGING or HEALING (see `coordinator.session.members.Standing`); docs/exchange.md has the diagram.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.forms import Form
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.admission import Admission
from coordinator.session.batches import check_batches
from coordinator.session.closing import Closing
from coordinator.session.decisions import (
    Decision,
    DeviceHealing,
    DeviceJoined,
    DeviceReported,
    Phase,
)
from coordinator.session.entrance import Entrance
from coordinator.session.gathering import Gathering
from coordinator.session.hyperparameters import check_hyperparameters
from coordinator.session.lateness import Lateness
from coordinator.session.leaving import Leaving
from coordinator.session.masked_steps import MaskedSteps
from coordinator.session.members import Joining, Member, Standing
from coordinator.session.owner import OwnerLease
from coordinator.session.progress import Progress
from coordinator.session.refusal import RefusedError, Status, invalid
from coordinator.session.robust import StepOutcome
from coordinator.session.roster import Roster
from coordinator.session.settings import SessionSettings
from coordinator.session.state import SessionState
from coordinator.session.step import Contribution, Step, Values
from coordinator.session.wait import Wait, wait_in_step, wait_to_begin


class Session:
    """One model's training: who takes part, which step is on, what is to be sent.

    While a step is closing (`is_closing`) nothing may happen to the session but `combined` and `abort`: all else waits,
    as it would if the step were combined in no time.
    """

    def __init__(self, name: str, settings: SessionSettings) -> None:
        self.name = name
        self.settings = settings
        self._state = SessionState(name, settings)
        lateness = Lateness(settings.step_deadline_s)
        self.progress = Progress(self._state, lateness)
        self._gathering = Gathering(settings, self.members)
        self._entrance = Entrance(self._state, self.progress, self._gathering)
        self._leaving = Leaving(self._state, self.progress, self._entrance)
        self._closing = Closing(self._state, self.progress, lateness)
        self._owner = OwnerLease(settings.owner_lease_s)
        self._active_at: float | None = None

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return self._state.phase

    @property
    def reason(self) -> str:
        """Why it is there, for a user."""
        return self._state.reason

    @property
    def is_over(self) -> bool:
        """Whether the session has ended or was aborted."""
        return self._state.is_over

    @property
    def members(self) -> Roster:
        """The devices that have a place."""
        return self._state.members

    @property
    def admission(self) -> Admission:
        """The session's model and options."""
        return self._state.admission

    @property
    def fingerprint(self) -> tuple[TensorSpec, ...]:
        """The tensors that are exchanged."""
        return self.admission.fingerprint

    @property
    def step(self) -> Step:
        """The step that is on."""
        return self.progress.step

    @property
    def masking(self) -> MaskedSteps | None:
        """What it does otherwise because its devices mask, if they do."""
        return self.progress.masking

    @property
    def is_closing(self) -> bool:
        """Whether the step is closed, and waits for what its slices become."""
        return self.progress.is_closing and not self.is_over

    @property
    def batches(self) -> int | None:
        """Of the step that is on, if the session chooses that; None if only the devices know."""
        return self.progress.batches

    @property
    def form(self) -> Form | None:
        """Of the moves in the step that is on; None if the codec has one alone, or only the devices know."""
        return self.progress.form

    @property
    def wait(self) -> Wait | None:
        """For whom it waits; None if for nobody."""
        if self.phase is Phase.GATHERING:
            return wait_to_begin(self._gathering)
        if self.phase is not Phase.TRAINING or self.is_closing:
            return None
        missing_since = self._state.quorum.missing_since
        return wait_in_step(self.members, self.step, self.settings.required, missing_since, self._active_at)

    def take_decisions(self) -> list[Decision]:
        """Return what is to be carried out since the last call, in order."""
        return self._state.take_decisions()

    # ------------------------------------------------------------------ membership

    def restore(self, admission: Admission, step: int, devices: list[str]) -> None:
        """Go on from a record: gather the devices that took part, whose own state decides the step."""
        self._state.admission = admission
        self.progress.resume_at(step)
        self._gathering.resume(devices)

    def join(self, joining: Joining, now: float, replayable_from: int | None = None) -> Member:
        """Give a device a place, or its place again.

        Args:
            joining: the device.
            now: the time.
            replayable_from: the first step from which on a stream can carry everything; None for the present one.

        Raises:
            UndecidedError: whether the device suits depends on what others bring.
            RefusedError: the session is over, no place is left, the id is taken, or the device does not suit.

        """
        joining, standing = self._entrance.admit(joining, replayable_from, now)
        member = Member(joining, standing, now)
        self.members[joining.device] = member
        self.members.lost.pop(joining.device, None)
        self._gathering.begin(now)
        self._active_at = now
        self._state.decide(DeviceJoined(member))
        if self.masking is not None:
            self._state.decide(*self.masking.again(joining.device, self.members))
        if standing is not Standing.ACTIVE:
            what = "its state is not the session's" if standing is Standing.HEALING else "it catches up"
            self._state.decide(DeviceHealing(joining.device, self.step.number, what))
        if self.phase is Phase.GATHERING and self._gathering.is_complete:
            self._begin(f"all {len(self.members)} devices have joined", now)
        self._state.watch_quorum(now)
        return member

    def healed(self, device: str, step: int) -> None:
        """Note that a member has a snapshot of a step, and sees all steps from it on."""
        member = self.members.get(device)
        if member is None or member.standing is not Standing.HEALING:
            return
        member.standing = Standing.LAGGING
        member.begin_anew()
        if self.phase is Phase.GATHERING and step == self.step.number:
            member.standing = Standing.ACTIVE

    def check_member(self, device: str) -> None:
        """Check that a device has a place.

        Raises:
            RefusedError: it has none; the text says how the session ended, if it did.

        """
        if device not in self.members:
            self._state.check_running()
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                f"device {device!r} is not in session {self.name!r}; join it first",
            )

    def finish(self, device: str, now: float, why: str = "") -> None:
        """Take back the place of a device that has done all its steps; the session never aborts for want of it.

        `why` says what ended them if they were not those of its whole run.
        """
        self._leaving.finish(device, now, why)
        self.advance(now)

    def remove(self, device: str, reason: str, now: float, status: Status = Status.OK) -> None:
        """Take a device's place away: it left, its lease ended, or it broke the contract.

        The session goes on while its quorum is left, and else waits for devices to come back. Nothing happens if the
        device is no member.
        """
        self._leaving.remove(device, reason, now, status)
        self.advance(now)

    def keep(self, now: float) -> None:
        """Take a sign of life of whoever opened the session."""
        self._owner.hear(now)

    def abort(self, reason: str) -> None:
        """End the session early; every device is told why."""
        if not self.is_over:
            self._state.finish(Phase.ABORTED, reason)

    # ------------------------------------------------------------------ steps

    def wants(self, device: str, step: int, samples: int | None, key: SliceKey, now: float) -> bool:
        """Tell whether a slice is to be decoded and contributed; otherwise it is known or comes too late.

        `samples` are None of a batch that the device skips.

        Raises:
            RefusedError: it is for a step to come, or the device sent it already on the same stream.

        """
        member = self._take_sign(device, step, samples, now)
        if member is None:
            return False
        if key in member.sent:
            spec = self.fingerprint[key.tensor]
            raise invalid(device, step, f"the {spec}: sent the slice at {key.offset} twice")
        member.sent.add(key)
        return not self.step.has(device, key)

    def contribute(self, device: str, samples: int | None, key: SliceKey, values: Values) -> None:
        """Take one slice that `wants` wants."""
        self.progress.contribute(self.members[device], samples, key, values)

    def complete(self, device: str, step: int, contribution: Contribution, now: float) -> None:
        """Take the end of a member's contribution.

        Raises:
            RefusedError: it is for a step to come, came twice, or the device does not do what most do: it sent other
                slices, trained another number of batches or updates with other hyperparameters. As long as it cannot
                be said what most do, the step waits.

        """
        member = self._take_sign(device, step, contribution.samples, now)
        if member is None:
            return
        contribution = replace(contribution, most_samples=member.most_samples)
        check_batches(device, step, contribution.batches)
        check_hyperparameters(device, step, contribution.hyperparameters)
        self.step.complete(device, contribution, now)
        outvoted = self._closing.outvoted()
        fault = outvoted.pop(device, None)
        if fault is not None:
            self.step.withdraw(device)
        else:
            member.completed = step
            self._state.decide(DeviceReported(device, step, contribution))
        self._refuse(outvoted.items(), now)
        if fault is not None:
            raise invalid(device, step, fault)

    def begin(self, device: str, step: int, now: float) -> None:
        """Take note that a device has begun a step under masks: the step waits for it, if it can be in the sum."""
        member = self.members[device]
        if self.masking is not None and step == self.step.number and self.masking.may_mask(device):
            self._active_at = now
            self._closing.take_sign(member, now)

    def take_keys(self, device: str, step: int, message: pb.StepKeys, now: float) -> None:
        """Take a device's keys for a step; those that come too late are dropped.

        Raises:
            RefusedError: they are not what the protocol wants, or the session has no secure aggregation.

        """
        self._take_masked(device, step, lambda masking: masking.take_keys(device, step, message))
        self.advance(now)

    def take_keys_ahead(self, device: str, step: int, message: pb.StepKeys) -> None:
        """Take a device's keys for a step to come.

        Raises:
            RefusedError: they are not what the protocol wants, or the session has no secure aggregation.

        """
        self._take_masked(device, step, lambda masking: masking.take_keys_ahead(device, step, message))

    def take_revealed(self, device: str, step: int, message: pb.Revealed, now: float) -> None:
        """Take what a device reveals of a step; what comes too late is dropped.

        Raises:
            RefusedError: it is not what it was asked for, or the session has no secure aggregation.

        """
        self._take_masked(device, step, lambda masking: masking.take_revealed(device, step, message))
        self.advance(now)

    def advance(self, now: float) -> None:
        """Decide what has become ready; call it after the contributions of one frame."""
        self._refuse(self._closing.outvoted().items(), now)
        self._closing.advance(now)

    def combined(self, outcome: StepOutcome, now: float) -> None:
        """Commit the step that is closing, with what `StepClosing.combine` returned; nothing if the session is over."""
        if self.is_closing and outcome.fault is not None:
            device, reason = outcome.fault
            self.progress.lose_step(now)
            self._refuse([(device, reason)], now)
        elif self.is_closing:
            self.progress.combined(outcome, now)
            self.advance(now)  # the masks of the next step are agreed on while the devices compute

    def tick(self, now: float) -> None:
        """Act on leases and deadlines that have passed."""
        settings = self.settings
        if not self.is_over and (reason := self._owner.ended(now)) is not None:
            self._state.finish(Phase.ABORTED, reason)
        silent = self.members.silent(settings.lease_s, now)
        for device in silent:
            reason = f"device {device!r}: nothing was heard from it for {settings.lease_s:g} s"
            self._leaving.remove(device, reason, now, Status.DEADLINE_EXCEEDED)
        if silent:
            self.advance(now)
        if self.is_closing:
            return
        if self.phase is Phase.GATHERING:
            if self._gathering.is_late(now) and self._gathering.may_go_on:
                self._begin(self._gathering.outcome, now)
            elif self._gathering.is_late(now):
                self._state.finish(Phase.ABORTED, self._gathering.outcome)
        elif self.phase is Phase.TRAINING:
            self._watch_deadlines(now)
            if self.masking is not None:
                self.advance(now)
            if not self.is_closing:
                self.progress.go_back_if_lost()
                self._leaving.end_if_done(now)

    # ------------------------------------------------------------------ inner workings

    def _take_masked(self, device: str, step: int, take: Callable[[MaskedSteps], None]) -> None:
        if self.masking is None:
            raise invalid(device, step, f"sends keys or shares, but session {self.name!r} has no secure aggregation")
        try:
            take(self.masking)
        except SecureAggregationError as error:
            raise invalid(device, step, error.reason) from None

    def _begin(self, reason: str, now: float) -> None:
        self._state.left_out += self._gathering.missing
        self._state.enter(Phase.TRAINING, reason)
        self.progress.start()
        self._state.watch_quorum(now)
        self.advance(now)

    def _refuse(self, outvoted: Iterable[tuple[str, str]], now: float) -> None:
        """Take devices' contributions out of the step, and their places away, each for a reason."""
        number, faults = self.step.number, list(outvoted)
        for device, _ in faults:
            self.step.withdraw(device)
        for device, reason in faults:
            error = invalid(device, number, reason)
            self._leaving.remove(device, error.reason, now, error.status)
        if faults:
            self.advance(now)

    def _take_sign(self, device: str, step: int, samples: int | None, now: float) -> Member | None:
        """Return the member if what it sent is for the step that is on, and None if it comes too late to count.

        Raises:
            RefusedError: it is for a step to come or one that it completed, or the samples are wrong.

        """
        member = self.members[device]
        self._active_at = now
        if member.standing is Standing.HEALING:
            return None
        if not member.is_in_time(step, self.step.number):
            return None
        self._state.quorum.check_together(device, step)
        if self.masking is not None and self.masking.is_late(device):
            return None
        if member.samples is None:  # it is the first that it sends in this step
            self.progress.count_in(member)
        member.claim(samples, step)
        self.step.begin(now)
        self._closing.take_sign(member, now)
        return member

    def _watch_deadlines(self, now: float) -> None:
        settings, state, began_at = self.settings, self._state, self.step.began_at
        if state.quorum.missing_since is not None:
            if now >= state.quorum.missing_since + settings.rejoin_deadline_s:
                state.finish(Phase.ABORTED, f"{self.reason}; none came back in {settings.rejoin_deadline_s:g} s")
        elif self.masking is not None and self.masking.is_settled:
            return  # the shares have a deadline of their own
        elif began_at is not None and now >= began_at + settings.step_deadline_s:
            self._refuse(self._closing.close_late(now).items(), now)
            self.advance(now)
        elif self._active_at is not None and now >= self._active_at + settings.idle_deadline_s:
            state.finish(Phase.ABORTED, f"no device sent anything for {settings.idle_deadline_s:g} s")
