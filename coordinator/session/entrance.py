"""How a device comes into a session: whether it suits, where it stands, and whose model and state the session has."""

from dataclasses import replace

from coordinator.session.decisions import DeviceHealing, DeviceRemoved, ModelChanged, Phase
from coordinator.session.gathering import Gathering
from coordinator.session.members import Joining, Standing
from coordinator.session.progress import Progress
from coordinator.session.refusal import Status, UndecidedError
from coordinator.session.state import SessionState
from coordinator.session.weighing import Verdict, Weighing, refused_as_ahead


class Entrance:
    """Lets devices in.

    Args:
        state: of the session.
        progress: its steps.
        gathering: who is awaited before the first one.

    """

    def __init__(self, state: SessionState, progress: Progress, gathering: Gathering) -> None:
        self._state = state
        self._progress = progress
        self._gathering = gathering
        self._weighing = Weighing(state.name, state.settings, gathering)

    def admit(self, joining: Joining, replayable_from: int | None, now: float) -> tuple[Joining, Standing]:
        """Return what counts of what a device says, and where it stands; its model and state may become the session's.

        Args:
            joining: the device.
            replayable_from: the first step from which on a stream can carry everything; None for the present one.
            now: the time.

        Raises:
            UndecidedError: whether the device suits depends on what others bring.
            RefusedError: the session is over, no place is left, the id is taken, or the device does not suit.

        """
        state = self._state
        state.check_running()
        state.admission.check_device(joining, state.members)
        if state.phase is Phase.GATHERING:
            self._weigh(joining, now)
        state.admission.check_model(joining)
        state.admission.check_places(joining, state.members)
        if self._known_if_ahead(joining) is not None:
            self._check_that_it_lost_its_coordinator(joining)
            joining = replace(joining, next_step=None)  # nobody is to go on from it
            standing = Standing.HEALING
        else:
            standing = self._standing_of(joining, replayable_from)
        if not state.admission.fingerprint:
            state.admission.adopt(joining)
            state.decide(ModelChanged(joining.device))
        state.admission.admit(joining)
        return joining, standing

    def start_anew(self) -> None:
        """Stand where the session stood before anybody had come."""
        self._progress.start_anew()
        self._state.members.lost.clear()
        self._gathering.restart()

    # ------------------------------------------------------------------ inner workings

    def _weigh(self, joining: Joining, now: float) -> None:
        """Let most of the awaited devices decide whose model and state the session begins with.

        Raises:
            UndecidedError: the device has to wait for what others bring.
            RefusedError: it has waited in vain, or too many wait already.

        """
        admission = self._state.admission
        try:
            verdict = self._weighing.weigh(joining, admission, self._known_if_ahead(joining), now)
            if verdict is Verdict.HAS_THE_MODEL:
                self._replace_model(joining, now)
                verdict = self._weighing.weigh(joining, admission, self._known_if_ahead(joining), now)
        except UndecidedError as waiting:
            if waiting.is_new:
                self._state.enter(Phase.GATHERING, waiting.reason)
            raise
        if verdict is Verdict.HAS_THE_STEP and (first := self._weighing.state_of_most(joining)) is not None:
            self._begin_with(first)
            self._gathering.settle()

    def _replace_model(self, joining: Joining, now: float) -> None:
        """Make a device's model that of the session, and take the places of those away that have another."""
        state = self._state
        state.admission.adopt(joining)
        state.decide(ModelChanged(joining.device))
        for member in list(state.members.values()):
            who = f"device {member.device!r} loses its place in session {state.name!r}"
            reason = f"{who}: most others have another model: {state.admission.difference(member.joining)}"
            del state.members[member.device]
            state.decide(DeviceRemoved(member.device, Status.FAILED_PRECONDITION, reason))
        self.start_anew()
        self._gathering.begin(now)

    def _known_if_ahead(self, joining: Joining) -> int | None:
        """Return the latest step that the session knows, if a device says to be further and nobody vouches for it."""
        state, known = self._state, self._progress.known_step
        is_trusted = state.phase is Phase.GATHERING and joining.device in state.settings.trust_state_of
        is_ahead = joining.next_step is not None and joining.next_step > known and not is_trusted
        return known if is_ahead else None

    def _check_that_it_lost_its_coordinator(self, joining: Joining) -> None:
        """Check that a device which is ahead may take over the session's state: its own coordinator is no more.

        Raises:
            RefusedError: it comes with a state that somebody saved, or was a member of this very session.

        """
        member = self._state.members.get(joining.device)
        if not joining.token or (member is not None and member.token == joining.token):
            raise refused_as_ahead(joining, self._state.name, self._progress.known_step)

    def _standing_of(self, joining: Joining, replayable_from: int | None) -> Standing:
        """Return where a device stands that joins, after a state that is further became that of the session."""
        step = self._progress.step.number
        if self._state.phase is Phase.GATHERING:
            if self._gathering.is_furthest(joining, step):
                self._begin_with(joining)
            return self._gathering.standing_of(joining, self._progress.step.number)
        if joining.next_step is None:
            return Standing.LAGGING if self._gathering.beginning.is_still(joining, step) else Standing.HEALING
        oldest = step if replayable_from is None else replayable_from
        return self._state.members.standing_of_returning(joining, oldest, step)

    def _begin_with(self, joining: Joining) -> None:
        """Make a device's state that of the session; those that were active need it."""
        step = self._gathering.beginning.step_of(joining)
        for member in self._state.members.values():
            if member.standing is Standing.ACTIVE and member.device != joining.device:
                member.standing = Standing.HEALING
                self._state.decide(DeviceHealing(member.device, step, "another device is further", must_be_told=True))
        self._progress.begin_with(step, is_aged=joining.next_step is not None)
        self._gathering.beginning.take(joining)
