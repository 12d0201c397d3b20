"""The steps of a session, one after the other: which is on, what goes into it, and how the next follows from it."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial

from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.forms import Form
from edgenewton.v1.framing import SliceKey

from coordinator.session.aggregation import AGGREGATORS
from coordinator.session.agreement import Agreed, Agreement
from coordinator.session.cadence import FIRST, FIRST_FORM, Cadence, CadenceChoice
from coordinator.session.curvature_check import CurvatureCheck
from coordinator.session.decisions import (
    DeviceHealing,
    DeviceUnlike,
    Phase,
    SliceReady,
    StepClosing,
    StepCommitted,
    StepSet,
)
from coordinator.session.drift import Difference, WeightComparison
from coordinator.session.lateness import Lateness
from coordinator.session.masked_steps import MaskedSteps
from coordinator.session.members import Member, Standing
from coordinator.session.release import RELEASES
from coordinator.session.robust import RULES, StepOutcome, StepRule
from coordinator.session.sample_limit import SampleLimit
from coordinator.session.settings import SessionSettings
from coordinator.session.state import SessionState
from coordinator.session.step import Step, Values

log = logging.getLogger(__name__)

MAX_LOST = 10
"""After so many lost steps in a row the session gives up."""
MAX_UNLIKE = 10_000
"""So many devices that were unlike the others are remembered."""


class Progress:
    """Has the step that is on, and takes the session from one to the next.

    Args:
        state: of the session.
        lateness: told who was in time.

    """

    def __init__(self, state: SessionState, lateness: Lateness) -> None:
        settings = state.settings
        self._state = state
        self._lateness = lateness
        self._rule = _step_rule(settings)
        self.masking = MaskedSteps(state.name, settings) if settings.secure_aggregation else None
        self._samples = SampleLimit(settings.max_samples)
        self._curvature = CurvatureCheck()
        self._unlike: Counter[str] = Counter()
        """In how many steps a device was unlike the others."""
        self._agreed = Agreed()
        """What the devices did alike in the last step."""
        self._comparison = WeightComparison()
        self._first_step = self.known_step = settings.first_step
        """Where the session stands before anybody has come; and the latest step that it ever stood at."""
        self.batches: int | None = FIRST
        """Of the step that is on, if the session chooses that; None if only the devices know."""
        self.form: Form | None = FIRST_FORM if settings.codec_choice.has_forms else None
        """Of the moves in the step that is on; None if the codec has one alone, or only the devices know."""
        self.step = self._new_step(settings.first_step)
        self._expected_batches = 1
        """Of the step that is on: as the session chose, or as many as in the one before."""
        self._lost = 0
        """Steps in a row of which nothing counted."""
        self._waited_s: Mapping[str, float] = {}
        """How long the contributions had waited when the step was closed."""

    # ------------------------------------------------------------------ where it stands

    def resume_at(self, step: int) -> None:
        """Stand where a record says."""
        self._first_step = self.known_step = step
        self._stand_at(step)

    def start_anew(self) -> None:
        """Stand where the session stood before anybody had come."""
        self._state.decide(StepSet(self._first_step))
        self.known_step = self._first_step
        self.step = self._new_step(self._first_step)

    def begin_with(self, step: int, *, is_aged: bool) -> None:
        """Stand before a step, with the state of a device that has come; `is_aged` if it has trained before."""
        # A state of the same number that was handed in is not this one.
        if step != self.step.number or self._state.members:
            self._state.decide(StepSet(step))
        # Also of the same number: what those have sent that were active was computed from another state.
        self.step = self._new_step(step)
        self.known_step = max(self.known_step, step)
        self._comparison = WeightComparison(is_aged=is_aged)

    def go_back_if_lost(self) -> None:
        """Go back to the furthest state that anybody still has, once nobody has the session's."""
        state = self._state
        if state.phase is not Phase.TRAINING or state.quorum.is_missing or state.quorum.has_finished:
            return
        if state.members.standing(Standing.ACTIVE, Standing.LAGGING):
            return
        furthest = state.members.furthest()
        if furthest is None:
            state.finish(Phase.ABORTED, "no device has the session's state any more")
            return
        self._stand_at(furthest.joining.next_step or 0)
        furthest.standing = Standing.LAGGING
        state.decide(StepSet(self.step.number))

    def lose_step(self, now: float) -> None:
        """Go on to the next step with nothing of the one that is on: its masks cannot be taken out any more."""
        state, number = self._state, self.step.number
        log.warning("session %r: step %d is lost; too few devices mask in it, or unmask its sum", state.name, number)
        self.step.lose(len(state.admission.fingerprint), self._expected_batches)
        self._lost += 1
        lost = self._lost
        self._commit(now)
        self._lost = lost
        if lost == MAX_LOST:
            state.finish(
                Phase.ABORTED,
                f"{lost} steps in a row, the last of them {number}, were lost: too few devices unmask their sums",
            )

    def start(self) -> None:
        """Begin with the members that have gathered: what they say that they hold bounds what counts."""
        members = self._state.members
        self.step.limit(self._samples.start(members, self.batches))
        for member in members.values():
            self.count_in(member)

    # ------------------------------------------------------------------ what goes into a step

    def count_in(self, member: Member) -> None:
        """Note how many samples of a member count in the step, as far as that is certain."""
        member.most_samples = self._samples.limit(member.joining, self.batches)

    def contribute(self, member: Member, samples: int | None, key: SliceKey, values: Values) -> None:
        """Take one slice; it weighs as much as it may."""
        step, device = self.step, member.device
        if samples is not None and self.masking is None:
            step.claim(device, samples, member.most_samples)
            samples = min(samples, member.most_samples)
            fault = self._curvature.fault(self._state.admission.fingerprint[key.tensor], key, values)
            if fault:
                step.unlike.setdefault(device, fault)
                samples = None  # as if it had skipped its batch: its slice is in, and weighs nothing
        step.add(device, samples, key, values)

    # ------------------------------------------------------------------ the end of a step

    @property
    def is_closing(self) -> bool:
        """Whether the step is closed, and its results are not known yet."""
        return self.step.is_closed

    def release(self, active: list[str], *, is_closing: bool, now: float) -> None:
        """Let what is ready leave, and commit the step if it is complete.

        Args:
            active: the devices that the step waits for.
            is_closing: all of them have contributed everything.
            now: the time.

        """
        if is_closing:
            self._waited_s = self.step.waited_s(now)
        if self.masking is not None:
            if is_closing:
                self._close_masked(self.masking, active, now)
        elif self._rule is None:
            for key, values in self.step.ready(active, is_closing=is_closing):
                self._leave(key, values)
            if is_closing:
                self._commit(now)
        elif is_closing:
            slices = self.step.close(active)
            job = partial(self._rule.combine, slices, set(self.step.contributions), self._state.admission.fingerprint)
            sizes = [len(held.values) for of_slice in slices.values() for held in of_slice]
            self._state.decide(StepClosing(self.step.number, job, sum(sizes), len(sizes)))

    def _close_masked(self, masking: MaskedSteps, active: list[str], now: float) -> None:
        """Ask for what unmasks the sum, once; close the step when it is there."""
        if not masking.is_settled:
            self._state.decide(*masking.ask(self.step.contributions.keys(), now))
        if masking.is_unmasked:
            slices = self.step.close(active)
            job = partial(masking.combine, slices, dict(self.step.contributions))
            sizes = [len(held.values) for of_slice in slices.values() for held in of_slice]
            self._state.decide(StepClosing(self.step.number, job, sum(sizes), len(sizes)))

    def combined(self, outcome: StepOutcome, now: float) -> None:
        """Commit the step that is closed, with what its slices have become."""
        for key, values in self.step.combined(outcome):
            self._leave(key, values)
        self._commit(now)

    # ------------------------------------------------------------------ inner workings

    @cached_property
    def _cadence(self) -> CadenceChoice:
        takes_sparse = self._rule is None or self._rule.takes_sparse
        state = self._state
        sizes = state.settings.codec_choice.form_sizes(state.admission.fingerprint) if takes_sparse else {}
        return CadenceChoice(sizes)

    def _stand_at(self, step: int) -> None:
        self.step = self._new_step(step)
        self._comparison = WeightComparison(is_aged=True)
        self.batches = self.form = None

    def _new_step(self, number: int) -> Step:
        settings = self._state.settings
        agreement = Agreement(lambda key: str(self._state.admission.fingerprint[key.tensor]), self._agreed)
        is_held = self._rule is not None or self.masking is not None
        return Step(
            number,
            None if is_held else AGGREGATORS[settings.aggregator],
            RELEASES["step" if is_held else settings.release],
            agreement,
            is_limited_later=self.masking is None and not self._samples.is_certain,
        )

    def _leave(self, key: SliceKey, values: Float32Array) -> None:
        # While only the devices know the form, for a step, the means of it are in the first one.
        self._state.decide(SliceReady(self.step.number, key, values, self.form or FIRST_FORM))

    def _commit(self, now: float) -> None:
        state, step = self._state, self.step
        lagging = state.members.standing(Standing.LAGGING)
        cadence = self._next_cadence(step)
        if cadence is not None:
            self.batches, self.form = cadence.batches, cadence.form or self.form
        differing = self._comparison.committed(step, state.members)
        if self.masking is None:
            self._samples.committed(step.contributions, step.batches)
            self._curvature.committed()
        self._tell_unlike(step)
        state.decide(StepCommitted.of(step, state.left_out, lagging, now, cadence, self._comparison.reason))
        state.left_out = []
        if not state.quorum.is_missing:
            state.quorum.forget_finished()  # whoever finished before the others did not end the session
        self._lateness.be_in_time(step.contributions.keys() & set(state.members.standing(Standing.ACTIVE)), now)
        for difference in differing:
            self._heal(difference, step.number)
        self._lost = 0
        self._expected_batches = step.batches if cadence is None else cadence.batches
        if step.contributions:
            self._agreed = step.agreement.agreed
        self.step = self._new_step(step.number + step.batches)
        self.known_step = max(self.known_step, self.step.number)
        for member in state.members.values():
            member.begin_step()

    def _next_cadence(self, step: Step) -> Cadence | None:
        paces = {device: c.pace for device, c in step.contributions.items() if c.pace is not None}
        if not paces:
            return None
        return self._cadence.choose(step.batches, paces, self._waited_s, self.form)

    def _tell_unlike(self, step: Step) -> None:
        for device, reason in sorted(step.unlike.items()):
            self._unlike[device] += 1
            if len(self._unlike) > MAX_UNLIKE:
                del self._unlike[next(each for each in self._unlike if each != device)]
            if self._unlike[device].bit_count() == 1:  # the 1st, 2nd, 4th, 8th, ... time
                self._state.decide(DeviceUnlike(device, step.number, reason, self._unlike[device]))

    def _heal(self, difference: Difference, step: int) -> None:
        """Send a device to heal whose weights before a step were not those of most."""
        member = self._state.members[difference.device]
        member.standing = Standing.HEALING
        member.joining = replace(member.joining, next_step=None)  # nobody is to go on from it
        reason = f"device {difference.device!r} diverged: before step {step} {difference}"
        self._state.decide(DeviceHealing(difference.device, step, reason, must_be_told=True))


def _step_rule(settings: SessionSettings) -> StepRule | None:
    """Return what combines the slices of a whole step; None where each is combined on its own."""
    make = RULES.get(settings.aggregator)
    return None if make is None else StepRule(lambda: make(settings.bad_devices))
