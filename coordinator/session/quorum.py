"""Whether enough devices are left for a session to go on, and since when they are not."""

from coordinator.session.refusal import RefusedError, Status
from coordinator.session.roster import Roster


class Quorum:
    """Watches how many members there are.

    Args:
        members: of the session.
        required: so many are needed.

    """

    def __init__(self, members: Roster, required: int) -> None:
        self._members = members
        self._required = required
        self.missing_since: float | None = None
        """None while enough are there."""
        self.has_finished = False
        """Whether a device has done all its steps: then too few members do not end the session."""
        self.why_finished = ""
        """Why a device that has finished takes no further step, if it was not the last of its run."""

    @property
    def is_missing(self) -> bool:
        """Whether there are too few members."""
        return len(self._members) < self._required

    @property
    def shortage(self) -> str:
        """How many there are, for a user."""
        return f"{len(self._members)} devices remain where at least {self._required} are needed"

    def watch(self, now: float) -> bool:
        """Note since when the quorum is missing; return whether it is, and devices may come back."""
        if not self.is_missing:
            self.missing_since = None
        elif not self.has_finished:
            if self.missing_since is None:
                self.missing_since = now
            return True
        return False

    def note_finished(self, why: str) -> None:
        """Note that a device has done all its steps, and why it takes no more if that was not the last of its run."""
        self.has_finished = True
        self.why_finished = why or self.why_finished

    def forget_finished(self) -> None:
        """Note that the session goes on without those that have finished."""
        self.has_finished, self.why_finished = False, ""

    def check_together(self, device: str, step: int) -> None:
        """Check that a device does not go on after the others.

        Raises:
            RefusedError: it does.

        """
        if self.has_finished and self.is_missing:
            raise RefusedError(Status.ABORTED, self.goes_on_alone(device, step))

    def goes_on_alone(self, device: str, step: int) -> str:
        """Return why a device cannot take a step."""
        why = self.why_finished or "all devices of a session must take the same number of steps"
        return f"device {device!r} goes on with step {step}, but others have finished: {why}"
