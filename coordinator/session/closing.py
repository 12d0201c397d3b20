"""Whom a step waits for, who does not do what most do, and what becomes of a step whose deadline has passed."""

from coordinator.session.decisions import DeviceHealing, DeviceRecovered, Phase
from coordinator.session.lateness import Lateness
from coordinator.session.masked_steps import MaskedSteps
from coordinator.session.members import Member, Standing
from coordinator.session.progress import Progress
from coordinator.session.state import SessionState


class Closing:
    """Says when a step is complete.

    Args:
        state: of the session.
        progress: its steps.
        lateness: who was late repeatedly.

    """

    def __init__(self, state: SessionState, progress: Progress, lateness: Lateness) -> None:
        self._state = state
        self._progress = progress
        self._lateness = lateness

    def take_sign(self, member: Member, now: float) -> None:
        """Let the step wait for a member that has begun it, unless it was late repeatedly."""
        if member.standing is Standing.LAGGING and not self._goes_on_without(member.device, now):
            self._wait_for(member)

    def outvoted(self, *, is_final: bool = False) -> dict[str, str]:
        """Return the complete devices that do not do what most do, and in which way, as far as it can be said.

        Args:
            is_final: the step waits for nobody any longer.

        """
        state, step = self._state, self._progress.step
        if state.phase is not Phase.TRAINING or not step.agreement.is_disputed:
            return {}
        awaited = [d for d in state.members.standing(Standing.ACTIVE) if d not in step.contributions]
        # Those that it does not wait for are heard if equally many say two things, until the step's deadline.
        may_come = [d for d in state.members.standing(Standing.LAGGING) if d not in step.contributions]
        is_final = is_final or not (awaited or may_come or state.quorum.is_missing)
        # Who has left has no vote: else one device could have many, under one name after another.
        voters = step.contributions.keys() & state.members.keys()
        return step.agreement.outvoted(voters, len(awaited), is_final=is_final)

    def advance(self, now: float) -> None:
        """Let go what has become ready, and close the step if all that it waits for is in."""
        state, progress = self._state, self._progress
        if state.phase is not Phase.TRAINING or progress.is_closing:
            return
        self._fill_quorum()
        if progress.masking is not None:
            self._advance_masks(progress.masking, now)
        active, required = state.members.standing(Standing.ACTIVE), self._required
        if len(active) < state.settings.required and not state.quorum.has_finished:
            return
        step = progress.step
        is_complete = bool(active) and step.is_complete(active) and not step.agreement.is_disputed
        progress.release(active, is_closing=is_complete and len(step.contributions) >= required, now=now)

    def close_late(self, now: float) -> dict[str, str]:
        """Act on a step's deadline: it goes on without those that are late, if enough are in.

        Returns:
            The devices that do not do what most do, and in which way: nobody is waited for that could turn it.

        """
        state, step = self._state, self._progress.step
        deadline_s, required = state.settings.step_deadline_s, self._required
        late = [d for d in state.members.standing(Standing.ACTIVE) if d not in step.contributions]
        outvoted = self.outvoted(is_final=True)
        agreeing = step.contributions.keys() - outvoted.keys()
        if state.settings.required <= len(agreeing) < required:
            for device in late:
                self._leave_out(device, now)
            self._progress.lose_step(now)
            return outvoted
        if len(agreeing) < required:
            if now >= (step.began_at or now) + deadline_s + state.settings.rejoin_deadline_s:
                behind = state.members.standing(Standing.LAGGING, Standing.HEALING)
                missing = sorted({*late, *behind, *state.members.lost})
                state.finish(
                    Phase.ABORTED,
                    f"step {step.number}: {len(agreeing)} devices contributed within {deadline_s:g} s where "
                    f"at least {required} are needed; waited for {', '.join(map(repr, missing))}",
                )
            return {}
        for device in late:
            self._leave_out(device, now)
        return outvoted

    # ------------------------------------------------------------------ inner workings

    @property
    def _required(self) -> int:
        """How many contributions the step needs."""
        required, masking = self._state.settings.required, self._progress.masking
        return required if masking is None else max(required, masking.least_contributions)

    def _advance_masks(self, masking: MaskedSteps, now: float) -> None:
        state, progress = self._state, self._progress
        if not state.quorum.is_missing and masking.is_lost(progress.step, state.members, now):
            progress.lose_step(now)
        state.decide(*masking.advance(progress.step, state.members, state.admission.fingerprint, now))
        for device in masking.left_behind(state.members):
            state.members[device].standing = Standing.LAGGING
            state.left_out.append(device)
            number = progress.step.number
            reason = f"device {device!r} was left out of step {number}: it was not there when the masks were agreed on"
            state.decide(DeviceHealing(device, number, reason))

    def _goes_on_without(self, device: str, now: float) -> bool:
        """Whether no step waits for a device that was late repeatedly: not if it is needed for the quorum."""
        is_enough = len(self._state.members.standing(Standing.ACTIVE)) >= self._state.settings.required
        return is_enough and self._lateness.has_to_wait(device, now)

    def _wait_for(self, member: Member) -> None:
        """Let the steps wait for a member from now on."""
        member.standing = Standing.ACTIVE
        self._state.decide(DeviceRecovered(member.device, self._progress.step.number))

    def _fill_quorum(self) -> None:
        """Count those in that the step went on without and that have sent something, as far as it needs them now."""
        state, step = self._state, self._progress.step
        lagging = [device for device in state.members.standing(Standing.LAGGING) if device not in state.left_out]
        complete = [device for device in lagging if device in step.contributions]
        for device in dict.fromkeys([*complete, *(device for device in lagging if device in step.senders)]):
            if len(state.members.standing(Standing.ACTIVE)) >= state.settings.required:
                return
            self._wait_for(state.members[device])

    def _leave_out(self, device: str, now: float) -> None:
        state, step = self._state, self._progress.step.number
        state.members[device].standing = Standing.LAGGING
        state.left_out.append(device)
        took = f"it took longer than {state.settings.step_deadline_s:g} s"
        reason = f"device {device!r} was left out of step {step}: {took}"
        wait_s = self._lateness.be_late(device, now)
        if wait_s:
            times = self._lateness.times(device)
            reason += f"; it was so {times} times of late, and steps go on without it for {wait_s:g} s"
        state.decide(DeviceHealing(device, step, reason, wait_s=wait_s))
