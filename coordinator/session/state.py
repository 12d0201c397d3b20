"""What the parts of a session share: its phase, who takes part, and what was decided and not yet carried out."""

from coordinator.session.admission import Admission
from coordinator.session.decisions import Decision, DeviceRemoved, Phase, PhaseChanged
from coordinator.session.quorum import Quorum
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.roster import Roster
from coordinator.session.settings import SessionSettings


class SessionState:
    """Where a session stands, without its steps.

    Args:
        name: of the session.
        settings: of the session.

    """

    def __init__(self, name: str, settings: SessionSettings) -> None:
        self.name = name
        self.settings = settings
        self.phase = Phase.GATHERING
        self.reason = ""
        self.members = Roster()
        self.admission = Admission(name, settings)
        self.quorum = Quorum(self.members, settings.required)
        self.left_out: list[str] = []
        """Devices that the step that is on goes on without."""
        self._decisions: list[Decision] = []

    @property
    def is_over(self) -> bool:
        """Whether the session has ended or was aborted."""
        return self.phase in (Phase.ENDED, Phase.ABORTED)

    def check_running(self) -> None:
        """Check that the session is not over.

        Raises:
            RefusedError: it is; the text says why.

        """
        if self.is_over:
            raise RefusedError(
                Status.FAILED_PRECONDITION, f"session {self.name!r} is {self.phase.value}: {self.reason}"
            )

    def decide(self, *decisions: Decision) -> None:
        """Let the caller of the session carry something out."""
        self._decisions += decisions

    def take_decisions(self) -> list[Decision]:
        """Return what was decided since the last call, in order."""
        decisions, self._decisions = self._decisions, []
        return decisions

    def enter(self, phase: Phase, reason: str) -> None:
        """Begin a phase, or tell news of it."""
        self.phase = phase
        self.reason = reason
        self.decide(PhaseChanged(phase, reason))

    def finish(self, phase: Phase, reason: str) -> None:
        """End the session; every device is told why."""
        status = Status.OK if phase is Phase.ENDED else Status.ABORTED
        for device in list(self.members):
            del self.members[device]
            self.decide(DeviceRemoved(device, status, f"session {self.name!r} {phase.value}: {reason}"))
        self.enter(phase, reason)

    def watch_quorum(self, now: float, reason: str = "") -> None:
        """Note since when the quorum is missing; without a time to come back the session is aborted."""
        if self.phase is not Phase.TRAINING or not self.quorum.watch(now):
            return
        self.reason = f"{reason or self.reason}; {self.quorum.shortage}"
        if not self.settings.rejoin_deadline_s:
            self.finish(Phase.ABORTED, self.reason)
