"""How a device leaves a session: with all its steps done, or before; and what becomes of those that stay."""

from coordinator.session.decisions import DeviceRemoved, ModelChanged, Phase
from coordinator.session.entrance import Entrance
from coordinator.session.progress import Progress
from coordinator.session.refusal import Status
from coordinator.session.state import SessionState


class Leaving:
    """Takes places back; whether the step that is on is complete without them is for the caller to see.

    Args:
        state: of the session.
        progress: its steps.
        entrance: to it.

    """

    def __init__(self, state: SessionState, progress: Progress, entrance: Entrance) -> None:
        self._state = state
        self._progress = progress
        self._entrance = entrance

    def remove(self, device: str, reason: str, now: float, status: Status = Status.OK) -> None:
        """Take a device's place away; nothing happens if it has none."""
        state = self._state
        if state.members.pop(device, None) is None:
            return
        state.decide(DeviceRemoved(device, status, reason))
        state.members.lose(device, now)
        if state.phase is Phase.GATHERING and not state.members:
            if not state.admission.is_recorded:
                state.admission.forget()
                state.decide(ModelChanged(None))
            self._entrance.start_anew()
        if state.phase is Phase.TRAINING:
            state.left_out.append(device)
            state.watch_quorum(now, f"device {device!r} left in step {self._progress.step.number}: {reason}")

    def finish(self, device: str, now: float, why: str = "") -> None:
        """Take back the place of a device that has done all its steps; the session never aborts for want of it.

        `why` says what ended them if they were not those of its whole run.
        """
        state, step = self._state, self._progress.step
        if state.phase is Phase.GATHERING:  # it has done nothing: it leaves like any other
            self.remove(device, f"it left before the first step{f': {why}' if why else ''}", now)
            return
        if state.members.pop(device, None) is None:
            return
        state.decide(DeviceRemoved(device, Status.OK, "finished"))
        state.quorum.note_finished(why and f"as {device!r} says, {why}")
        if state.quorum.is_missing:
            for other in step.senders & state.members.keys():
                self.remove(other, state.quorum.goes_on_alone(other, step.number), now, Status.ABORTED)
        self.end_if_done(now)

    def end_if_done(self, now: float) -> None:
        """End the session when all have finished and nobody is expected back."""
        state = self._state
        if state.members or not state.quorum.has_finished or state.is_over:
            return
        state.members.give_up_lost(state.settings.rejoin_deadline_s, now)
        if not state.members.lost:
            state.finish(Phase.ENDED, ": ".join(filter(None, ("all devices have finished", state.quorum.why_finished))))
