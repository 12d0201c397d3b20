"""The session state machine: membership, steps, deadlines. Plain Python: it is given events and the time.

Every call may leave decisions behind, which the caller takes and carries out in their order. Phases:

    GATHERING --all devices joined--> TRAINING --all devices finished--> ENDED
        |                                |
        +------ a deadline passed without the quorum, abort() ------> ABORTED

A member is ACTIVE, LAGGING or HEALING (see `coordinator.session.members.Standing`); docs/exchange.md has the diagram.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.forms import Form
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.admission import Admission
from coordinator.session.aggregation import AGGREGATORS
from coordinator.session.agreement import Agreed, Agreement
from coordinator.session.batches import check_batches
from coordinator.session.cadence import FIRST, FIRST_FORM, Cadence, CadenceChoice
from coordinator.session.curvature_check import CurvatureCheck
from coordinator.session.decisions import (
    Decision,
    DeviceHealing,
    DeviceJoined,
    DeviceRecovered,
    DeviceRemoved,
    DeviceReported,
    DeviceUnlike,
    ModelChanged,
    Phase,
    PhaseChanged,
    SliceReady,
    StepCommitted,
    StepSet,
)
from coordinator.session.drift import Difference, WeightComparison
from coordinator.session.gathering import Gathering
from coordinator.session.hyperparameters import check_hyperparameters
from coordinator.session.lateness import Lateness
from coordinator.session.members import Joining, Member, Standing
from coordinator.session.owner import OwnerLease
from coordinator.session.quorum import Quorum, goes_on_alone
from coordinator.session.refusal import RefusedError, Status, UndecidedError, invalid
from coordinator.session.release import RELEASES
from coordinator.session.robust import RULES, StepOutcome, StepRule
from coordinator.session.robust.step_rule import Held
from coordinator.session.roster import Roster
from coordinator.session.sample_limit import SampleLimit
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution, Step
from coordinator.session.wait import Wait, wait_in_step, wait_to_begin
from coordinator.session.weighing import Verdict, Weighing, refused_as_ahead


class Session:
    """One model's training: who takes part, which step is on, what is to be sent."""

    def __init__(self, name: str, settings: SessionSettings) -> None:
        self.name = name
        self.settings = settings
        self.phase = Phase.GATHERING
        self.reason = ""
        self.members = Roster()
        self.admission = Admission(name, settings)
        self._rule = _step_rule(settings)
        self._samples = SampleLimit(settings.max_samples)
        self._curvature = CurvatureCheck()
        self._unlike: Counter[str] = Counter()
        """In how many steps a device was unlike the others."""
        self._agreed = Agreed()
        """What the devices did alike in the last step."""
        self.step = self._new_step(settings.first_step)
        self._gathering = Gathering(settings, self.members)
        self._first_step = self._known_step = settings.first_step
        """Where the session stands before anybody has come; and the latest step that it ever stood at."""
        self._lateness = Lateness(settings.step_deadline_s)
        self._weighing = Weighing(name, settings, self._gathering)
        self._owner = OwnerLease(settings.owner_lease_s)
        self._quorum = Quorum(self.members, settings.required)
        self._comparison = WeightComparison()
        self._active_at: float | None = None
        self._left_out: list[str] = []
        self.batches: int | None = FIRST
        """Of the step that is on, if the session chooses that; None if only the devices know."""
        self.form: Form | None = FIRST_FORM if settings.codec_choice.has_forms else None
        """Of the moves in the step that is on; None if the codec has one alone, or only the devices know."""
        self._decisions: list[Decision] = []

    @property
    def is_over(self) -> bool:
        """Whether the session has ended or was aborted."""
        return self.phase in (Phase.ENDED, Phase.ABORTED)

    @property
    def fingerprint(self) -> tuple[TensorSpec, ...]:
        """The tensors that are exchanged."""
        return self.admission.fingerprint

    @cached_property
    def _cadence(self) -> CadenceChoice:
        takes_sparse = self._rule is None or self._rule.takes_sparse
        return CadenceChoice(self.settings.codec_choice.form_sizes(self.fingerprint) if takes_sparse else {})

    def take_decisions(self) -> list[Decision]:
        """Return what is to be carried out since the last call, in order."""
        decisions, self._decisions = self._decisions, []
        return decisions

    # ------------------------------------------------------------------ membership

    def restore(self, admission: Admission, step: int, devices: list[str]) -> None:
        """Go on from a record: gather the devices that took part, whose own state decides the step."""
        self.admission = admission
        self._first_step = self._known_step = step
        self.step = self._new_step(step)
        self._comparison = WeightComparison(is_aged=True)
        self.batches = self.form = None
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
        self._refuse_if_over()
        self.admission.check_device(joining, self.members)
        if self.phase is Phase.GATHERING:
            self._weigh(joining, now)
        self.admission.check_model(joining)
        self.admission.check_places(joining, self.members)
        if self._known_if_ahead(joining) is not None:
            self._check_that_it_lost_its_coordinator(joining)
            joining = replace(joining, next_step=None)  # nobody is to go on from it
            standing = Standing.HEALING
        else:
            standing = self._standing_of(joining, replayable_from)
        if not self.fingerprint:
            self.admission.adopt(joining)
            self._decide(ModelChanged(joining.device))
        self.admission.admit(joining)
        member = Member(joining, standing, now)
        self.members[joining.device] = member
        self.members.lost.pop(joining.device, None)
        self._gathering.begin(now)
        self._active_at = now
        self._decide(DeviceJoined(member))
        if standing is not Standing.ACTIVE:
            what = "its state is not the session's" if standing is Standing.HEALING else "it catches up"
            self._decide(DeviceHealing(joining.device, self.step.number, what))
        if self.phase is Phase.GATHERING and self._gathering.is_complete:
            self._begin(f"all {len(self.members)} devices have joined", now)
        self._watch_quorum(now)
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
            self._refuse_if_over()
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                f"device {device!r} is not in session {self.name!r}; join it first",
            )

    def finish(self, device: str, now: float) -> None:
        """Take back the place of a device that has done all its steps; the session never aborts for want of it."""
        if self.phase is Phase.GATHERING:  # it has done nothing: it leaves like any other
            self.remove(device, "it left before the first step", now)
            return
        if self.members.pop(device, None) is None:
            return
        self._decide(DeviceRemoved(device, Status.OK, "finished"))
        self._quorum.has_finished = True
        if self._quorum.is_missing:
            for other in self.step.senders & self.members.keys():
                self.remove(other, goes_on_alone(other, self.step.number), now, Status.ABORTED)
        self._end_if_done(now)
        self._advance(now)

    def remove(self, device: str, reason: str, now: float, status: Status = Status.OK) -> None:
        """Take a device's place away: it left, its lease ended, or it broke the contract.

        The session goes on while its quorum is left, and else waits for devices to come back. Nothing happens if the
        device is no member.
        """
        if self.members.pop(device, None) is None:
            return
        self._decide(DeviceRemoved(device, status, reason))
        self.members.lost[device] = now
        if self.phase is Phase.GATHERING and not self.members:
            if not self.admission.is_recorded:
                self.admission.forget()
                self._decide(ModelChanged(None))
            self._start_anew()
        if self.phase is Phase.TRAINING:
            self._left_out.append(device)
            self._watch_quorum(now, f"device {device!r} left in step {self.step.number}: {reason}")
            self._advance(now)

    def keep(self, now: float) -> None:
        """Take a sign of life of whoever opened the session."""
        self._owner.hear(now)

    def abort(self, reason: str) -> None:
        """End the session early; every device is told why."""
        if not self.is_over:
            self._finish(Phase.ABORTED, reason)

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

    def contribute(self, device: str, samples: int | None, key: SliceKey, values: Float32Array) -> None:
        """Take one slice that `wants` wants."""
        if samples is not None:
            member = self.members[device]
            if samples > member.most_samples:
                self.step.unlike.setdefault(
                    device, f"it claims {samples} samples, and counted with {member.most_samples}"
                )
                samples = member.most_samples
            fault = self._curvature.fault(self.fingerprint[key.tensor], key, values)
            if fault:
                self.step.unlike.setdefault(device, fault)
                samples = None  # as if it had skipped its batch: its slice is in, and weighs nothing
        self.step.add(device, samples, key, values)

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
        outvoted = self._outvoted()
        fault = outvoted.pop(device, None)
        if fault is not None:
            self.step.withdraw(device)
        else:
            member.completed = step
            self._decide(DeviceReported(device, step, contribution))
        self._refuse_outvoted(outvoted, now)
        if fault is not None:
            raise invalid(device, step, fault)

    def advance(self, now: float) -> None:
        """Decide what has become ready; call it after the contributions of one frame."""
        if self.phase is Phase.TRAINING:
            self._advance(now)

    def tick(self, now: float) -> None:
        """Act on leases and deadlines that have passed."""
        settings = self.settings
        if not self.is_over and (reason := self._owner.ended(now)) is not None:
            self._finish(Phase.ABORTED, reason)
        for device in self.members.silent(settings.lease_s, now):
            reason = f"device {device!r}: nothing was heard from it for {settings.lease_s:g} s"
            self.remove(device, reason, now, Status.DEADLINE_EXCEEDED)
        if self.phase is Phase.GATHERING:
            if self._gathering.is_late(now):
                self._close_gathering(now)
        elif self.phase is Phase.TRAINING:
            began_at = self.step.began_at
            if self._quorum.missing_since is not None:
                if now >= self._quorum.missing_since + settings.rejoin_deadline_s:
                    self._finish(Phase.ABORTED, f"{self.reason}; none came back in {settings.rejoin_deadline_s:g} s")
            elif began_at is not None and now >= began_at + settings.step_deadline_s:
                self._close_late_step(now)
            elif self._active_at is not None and now >= self._active_at + settings.idle_deadline_s:
                self._finish(Phase.ABORTED, f"no device sent anything for {settings.idle_deadline_s:g} s")
            self._restart_if_none_has_the_state()
            self._end_if_done(now)

    @property
    def wait(self) -> Wait | None:
        """For whom it waits; None if for nobody."""
        if self.phase is Phase.GATHERING:
            return wait_to_begin(self._gathering)
        if self.phase is not Phase.TRAINING:
            return None
        missing_since = self._quorum.missing_since
        return wait_in_step(self.members, self.step, self.settings.required, missing_since, self._active_at)

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

    def _weigh(self, joining: Joining, now: float) -> None:
        """Let most of the awaited devices decide whose model and state the session begins with.

        Raises:
            UndecidedError: the device has to wait for what others bring.
            RefusedError: it has waited in vain, or too many wait already.

        """
        try:
            verdict = self._weighing.weigh(joining, self.admission, self._known_if_ahead(joining), now)
            if verdict is Verdict.HAS_THE_MODEL:
                self._replace_model(joining, now)
                verdict = self._weighing.weigh(joining, self.admission, self._known_if_ahead(joining), now)
        except UndecidedError as waiting:
            if waiting.is_new:
                self._enter(Phase.GATHERING, waiting.reason)
            raise
        if verdict is Verdict.HAS_THE_STEP and (first := self._weighing.state_of_most(joining)) is not None:
            self._begin_with(first)
            self._gathering.settle()

    def _replace_model(self, joining: Joining, now: float) -> None:
        """Make a device's model that of the session, and take the places of those away that have another."""
        self.admission.adopt(joining)
        self._decide(ModelChanged(joining.device))
        for member in list(self.members.values()):
            who = f"device {member.device!r} loses its place in session {self.name!r}"
            reason = f"{who}: most others have another model: {self.admission.difference(member.joining)}"
            del self.members[member.device]
            self._decide(DeviceRemoved(member.device, Status.FAILED_PRECONDITION, reason))
        self._start_anew()
        self._gathering.begin(now)

    def _start_anew(self) -> None:
        """Stand where the session stood before anybody had come."""
        self._decide(StepSet(self._first_step))
        self.members.lost.clear()
        self._known_step = self._first_step
        self.step = self._new_step(self._first_step)
        self._gathering.restart()

    def _known_if_ahead(self, joining: Joining) -> int | None:
        """Return the latest step that the session knows, if a device says to be further and nobody vouches for it."""
        is_trusted = self.phase is Phase.GATHERING and joining.device in self.settings.trust_state_of
        is_ahead = joining.next_step is not None and joining.next_step > self._known_step and not is_trusted
        return self._known_step if is_ahead else None

    def _check_that_it_lost_its_coordinator(self, joining: Joining) -> None:
        """Check that a device which is ahead may take over the session's state: its own coordinator is no more.

        Raises:
            RefusedError: it comes with a state that somebody saved, or was a member of this very session.

        """
        member = self.members.get(joining.device)
        if not joining.token or (member is not None and member.token == joining.token):
            raise refused_as_ahead(joining, self.name, self._known_step)

    def _standing_of(self, joining: Joining, replayable_from: int | None) -> Standing:
        """Return where a device stands that joins, after a state that is further became that of the session."""
        step = self.step.number
        if self.phase is Phase.GATHERING:
            if self._gathering.is_furthest(joining, step):
                self._begin_with(joining)
            return self._gathering.standing_of(joining, self.step.number)
        if joining.next_step is None:
            return Standing.LAGGING if self._gathering.beginning.is_still(joining, step) else Standing.HEALING
        return self.members.standing_of_returning(joining, step if replayable_from is None else replayable_from, step)

    def _begin_with(self, joining: Joining) -> None:
        """Make a device's state that of the session; those that were active need it."""
        step = self._gathering.beginning.step_of(joining)
        for member in self.members.values():
            if member.standing is Standing.ACTIVE and member.device != joining.device:
                member.standing = Standing.HEALING
                self._decide(DeviceHealing(member.device, step, "another device is further", must_be_told=True))
        if step != self.step.number or self.members:  # a state of the same number that was handed in is not this one
            self._decide(StepSet(step))
        # Also of the same number: what those have sent that were active was computed from another state.
        self.step = self._new_step(step)
        self._known_step = max(self._known_step, step)
        self._gathering.beginning.take(joining)
        self._comparison = WeightComparison(is_aged=joining.next_step is not None)

    def _begin(self, reason: str, now: float) -> None:
        self._left_out += self._gathering.missing
        self._enter(Phase.TRAINING, reason)
        self._watch_quorum(now)
        self._advance(now)

    def _close_gathering(self, now: float) -> None:
        if self._gathering.may_go_on:
            self._begin(self._gathering.outcome, now)
        else:
            self._finish(Phase.ABORTED, self._gathering.outcome)

    def _watch_quorum(self, now: float, reason: str = "") -> None:
        """Note since when the quorum is missing; without a time to come back the session is aborted."""
        if self.phase is not Phase.TRAINING or not self._quorum.watch(now):
            return
        self.reason = f"{reason or self.reason}; {self._quorum.shortage}"
        if not self.settings.rejoin_deadline_s:
            self._finish(Phase.ABORTED, self.reason)

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
        self._quorum.check_together(device, step)
        if member.samples is None:  # it is the first that it sends in this step
            member.most_samples = self._samples.limit(member.joining, self.members, self.batches)
        member.claim(samples, step)
        self.step.begin(now)
        if member.standing is Standing.LAGGING and not self._goes_on_without(device, now):
            self._wait_for(member)
        return member

    def _goes_on_without(self, device: str, now: float) -> bool:
        """Whether no step waits for a device that was late repeatedly: not if it is needed for the quorum."""
        is_enough = len(self.members.standing(Standing.ACTIVE)) >= self.settings.required
        return is_enough and self._lateness.has_to_wait(device, now)

    def _wait_for(self, member: Member) -> None:
        """Let the steps wait for a member from now on."""
        member.standing = Standing.ACTIVE
        self._decide(DeviceRecovered(member.device, self.step.number))

    def _fill_quorum(self) -> None:
        """Count those in that the step went on without and that have sent something, as far as it needs them now."""
        lagging = [device for device in self.members.standing(Standing.LAGGING) if device not in self._left_out]
        complete = [device for device in lagging if device in self.step.contributions]
        for device in dict.fromkeys([*complete, *(device for device in lagging if device in self.step.senders)]):
            if len(self.members.standing(Standing.ACTIVE)) >= self.settings.required:
                return
            self._wait_for(self.members[device])

    def _outvoted(self, *, is_final: bool = False) -> dict[str, str]:
        """Return the complete devices that do not do what most do, and in which way, as far as it can be said.

        Args:
            is_final: the step waits for nobody any longer.

        """
        step = self.step
        if self.phase is not Phase.TRAINING or not step.agreement.is_disputed:
            return {}
        awaited = [d for d in self.members.standing(Standing.ACTIVE) if d not in step.contributions]
        # Those that it does not wait for are heard if equally many say two things, until the step's deadline.
        may_come = [d for d in self.members.standing(Standing.LAGGING) if d not in step.contributions]
        is_final = is_final or not (awaited or may_come or self._quorum.is_missing)
        # Who has left has no vote: else one device could have many, under one name after another.
        voters = step.contributions.keys() & self.members.keys()
        return step.agreement.outvoted(voters, len(awaited), is_final=is_final)

    def _refuse_outvoted(self, outvoted: Mapping[str, str], now: float) -> None:
        """Take devices' contributions out of the step, and their places away."""
        number = self.step.number
        for device in outvoted:
            self.step.withdraw(device)
        for device, reason in outvoted.items():
            error = invalid(device, number, reason)
            self.remove(device, error.reason, now, error.status)

    def _advance(self, now: float) -> None:
        if self.phase is Phase.TRAINING:
            self._refuse_outvoted(self._outvoted(), now)
            self._fill_quorum()
        active = self.members.standing(Standing.ACTIVE)
        if self.phase is not Phase.TRAINING or (len(active) < self.settings.required and not self._quorum.has_finished):
            return
        is_complete = bool(active) and self.step.is_complete(active) and not self.step.agreement.is_disputed
        is_closing = is_complete and len(self.step.contributions) >= self.settings.required
        for key, values in self.step.ready(active, is_closing=is_closing):
            # While only the devices know the form, for a step, the means of it are in the first one.
            self._decide(SliceReady(self.step.number, key, values, self.form or FIRST_FORM))
        if is_closing:
            self._commit(now)

    def _new_step(self, number: int) -> Step:
        agreement = Agreement(lambda key: str(self.fingerprint[key.tensor]), self._agreed)
        if self._rule is None:
            return Step(number, AGGREGATORS[self.settings.aggregator], RELEASES[self.settings.release], agreement)
        return Step(number, AGGREGATORS["mean"], RELEASES["step"], agreement, self._combine)

    def _combine(self, slices: Mapping[SliceKey, Sequence[Held]], complete: Collection[str]) -> StepOutcome:
        assert self._rule is not None
        return self._rule.combine(slices, complete, self.fingerprint)

    def _commit(self, now: float) -> None:
        step = self.step
        lagging = self.members.standing(Standing.LAGGING)
        cadence = self._next_cadence(step, now)
        if cadence is not None:
            self.batches, self.form = cadence.batches, cadence.form or self.form
        differing = self._comparison.committed(step, self.members)
        self._samples.committed(step.contributions, step.batches)
        self._curvature.committed()
        for device, reason in sorted(step.unlike.items()):
            self._unlike[device] += 1
            if self._unlike[device].bit_count() == 1:  # the 1st, 2nd, 4th, 8th, ... time
                self._decide(DeviceUnlike(device, step.number, reason, self._unlike[device]))
        self._decide(StepCommitted.of(step, self._left_out, lagging, now, cadence, self._comparison.reason))
        self._left_out = []
        if not self._quorum.is_missing:
            self._quorum.has_finished = False  # whoever finished before the others did not end the session
        self._lateness.be_in_time(step.contributions.keys() & set(self.members.standing(Standing.ACTIVE)), now)
        for difference in differing:
            self._heal(difference, step.number)
        self._agreed = step.agreement.agreed
        self.step = self._new_step(step.number + step.batches)
        self._known_step = max(self._known_step, self.step.number)
        for member in self.members.values():
            member.begin_step()

    def _next_cadence(self, step: Step, now: float) -> Cadence | None:
        paces = {device: c.pace for device, c in step.contributions.items() if c.pace is not None}
        if not paces:
            return None
        return self._cadence.choose(step.batches, paces, step.waited_s(now), self.form)

    def _heal(self, difference: Difference, step: int) -> None:
        """Send a device to heal whose weights before a step were not those of most."""
        member = self.members[difference.device]
        member.standing = Standing.HEALING
        member.joining = replace(member.joining, next_step=None)  # nobody is to go on from it
        reason = f"device {difference.device!r} diverged: before step {step} {difference}"
        self._decide(DeviceHealing(difference.device, step, reason, must_be_told=True))

    def _close_late_step(self, now: float) -> None:
        settings = self.settings
        late = [d for d in self.members.standing(Standing.ACTIVE) if d not in self.step.contributions]
        wait = f"{settings.step_deadline_s:g} s"
        outvoted = self._outvoted(is_final=True)
        agreeing = self.step.contributions.keys() - outvoted.keys()
        if len(agreeing) < settings.required:
            patience = (self.step.began_at or now) + settings.step_deadline_s + settings.rejoin_deadline_s
            if now >= patience:
                behind = self.members.standing(Standing.LAGGING, Standing.HEALING)
                missing = sorted({*late, *behind, *self.members.lost})
                self._finish(
                    Phase.ABORTED,
                    f"step {self.step.number}: {len(agreeing)} devices contributed within {wait} where "
                    f"at least {settings.required} are needed; waited for {', '.join(map(repr, missing))}",
                )
            return
        for device in late:
            self.members[device].standing = Standing.LAGGING
            self._left_out.append(device)
            reason = f"device {device!r} was left out of step {self.step.number}: it took longer than {wait}"
            wait_s = self._lateness.be_late(device, now)
            if wait_s:
                times = self._lateness.times(device)
                reason += f"; it was so {times} times of late, and steps go on without it for {wait_s:g} s"
            self._decide(DeviceHealing(device, self.step.number, reason, wait_s=wait_s))
        self._refuse_outvoted(outvoted, now)
        self._advance(now)

    def _restart_if_none_has_the_state(self) -> None:
        """Go back to the furthest state that anybody still has, once nobody has the session's."""
        if self.phase is not Phase.TRAINING or self._quorum.is_missing or self._quorum.has_finished:
            return
        if self.members.standing(Standing.ACTIVE, Standing.LAGGING):
            return
        furthest = self.members.furthest()
        if furthest is None:
            self._finish(Phase.ABORTED, "no device has the session's state any more")
            return
        self.step = self._new_step(furthest.joining.next_step or 0)
        self._comparison = WeightComparison(is_aged=True)
        self.batches = self.form = None
        furthest.standing = Standing.LAGGING
        self._decide(StepSet(self.step.number))

    def _end_if_done(self, now: float) -> None:
        """End the session when all have finished and nobody is expected back."""
        if self.members or not self._quorum.has_finished or self.is_over:
            return
        self.members.give_up_lost(self.settings.rejoin_deadline_s, now)
        if not self.members.lost:
            self._finish(Phase.ENDED, "all devices have finished")


def _step_rule(settings: SessionSettings) -> StepRule | None:
    """Return what combines the slices of a whole step; None where each is combined on its own."""
    make = RULES.get(settings.aggregator)
    return None if make is None else StepRule(lambda: make(settings.bad_devices))
