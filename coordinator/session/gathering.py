"""The time before the first step: which devices are awaited, for how long, and whose state the session begins with."""

from collections.abc import Sequence

from coordinator.session.beginning import Beginning
from coordinator.session.claims import Claims
from coordinator.session.members import Joining, Standing
from coordinator.session.roster import Roster
from coordinator.session.settings import SessionSettings


class Gathering:
    """Waits for a session's devices.

    Args:
        settings: of the session.
        members: those that have come.

    """

    def __init__(self, settings: SessionSettings, members: Roster) -> None:
        self._settings = settings
        self._members = members
        self._expected = settings.devices
        self._is_resumed = False
        self._recorded: Sequence[str] = ()
        """Devices that took part before the session was resumed."""
        self._since: float | None = None
        self._is_settled = False
        """Whether most have said which state the session begins with."""
        self.beginning = Beginning(settings.first_step)
        self.claims = Claims(settings.lease_s, settings.join_deadline_s)

    def resume(self, devices: Sequence[str]) -> None:
        """Wait for the devices that took part before."""
        self._is_resumed = True
        self._recorded = devices
        self._expected = max(self._settings.required, len(devices))

    def restart(self) -> None:
        """Forget who has come: nobody of them is left."""
        self._since = None
        self._is_settled = False
        self.beginning = Beginning(self._settings.first_step)

    def settle(self) -> None:
        """Begin with the state that the session has now, and with no other."""
        self._is_settled = True

    def begin(self, now: float) -> None:
        """Note when the first device came."""
        if self._since is None:
            self._since = now

    @property
    def since(self) -> float | None:
        """When the first device came; None if none has."""
        return self._since

    @property
    def is_complete(self) -> bool:
        """Whether all have come."""
        return len(self._members) >= self._expected

    @property
    def expected(self) -> int:
        """How many devices are awaited."""
        return self._expected

    @property
    def has_come(self) -> int:
        """How many have a place."""
        return len(self._members)

    @property
    def majority(self) -> int:
        """How many of the awaited devices are most of them."""
        return self._expected // 2 + 1

    def may_be_outvoted_without(self, device: str) -> bool:
        """Whether so few have come, a device not counted, that those to come are most of the awaited ones."""
        return self._expected - len(self._members.keys() - {device}) >= self.majority

    def is_late(self, now: float) -> bool:
        """Whether the time to come is over."""
        return self._since is not None and now >= self._since + self._settings.join_deadline_s

    @property
    def may_go_on(self) -> bool:
        """Whether the session may begin with those that came in time."""
        quorum = self._settings.required
        return len(self._members) >= quorum and (self._is_resumed or self._expected > quorum)

    @property
    def outcome(self) -> str:
        """Who came in time, for a user."""
        names = ", ".join(sorted(self._members)) or "none is left"
        wait = f"{self._settings.join_deadline_s:g} s"
        return f"{len(self._members)} of {self._expected} devices joined within {wait}: {names}"

    @property
    def missing(self) -> list[str]:
        """Devices that took part before and have not come back."""
        return [device for device in self._recorded if device not in self._members]

    def is_furthest(self, joining: Joining, step: int) -> bool:
        """Whether the state of a device is to be that of the session, which stands before a step."""
        if self._is_settled and joining.device not in self._settings.trust_state_of:
            return False
        if joining.next_step is None and step != self._settings.first_step:
            return False
        if not self._members.standing(Standing.ACTIVE):
            return True
        if self.beginning.step_of(joining) == step and not self.beginning.is_that_of(joining, step):
            return self.beginning.loses_to(joining, self._members.values())
        return self.beginning.is_behind(joining, step)

    def standing_of(self, joining: Joining, step: int) -> Standing:
        """Return where a device stands that joins, after the state of the furthest became that of the session."""
        if joining.next_step is None and step != self._settings.first_step:
            return Standing.HEALING
        return Standing.ACTIVE if self.beginning.is_that_of(joining, step) else Standing.HEALING
