"""Who takes part in a session by device id, and who is missed."""

from coordinator.session.members import Joining, Member, Standing

MAX_LOST = 10_000
"""So many devices that have not finished are expected back."""


class Roster(dict[str, Member]):
    """The members of a session by their device ids."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: dict[str, float] = {}
        """Devices that were members, have not finished, and are expected back; and since when they are missing."""

    def standing(self, *standings: Standing) -> list[str]:
        """Return the members with one of these standings."""
        return [device for device, member in self.items() if member.standing in standings]

    def connected(self, device: str, now: float) -> None:
        """Note that a member's stream is open."""
        self[device].is_connected = True
        self[device].heard_at = now

    def disconnected(self, device: str, now: float) -> None:
        """Note that a member's stream broke; it keeps its place until its lease ends."""
        member = self.get(device)
        if member is not None:
            member.is_connected = False
            member.heard_at = now

    def heard(self, device: str, now: float) -> None:
        """Note a sign of life."""
        member = self.get(device)
        if member is not None:
            member.heard_at = now

    def silent(self, lease_s: float, now: float) -> list[str]:
        """Return the members whose lease has ended."""
        return [device for device, member in self.items() if now >= member.heard_at + lease_s]

    def lose(self, device: str, now: float) -> None:
        """Expect a device back; of too many those are given up that have been missing for longest."""
        self.lost.pop(device, None)
        self.lost[device] = now
        if len(self.lost) > MAX_LOST:
            del self.lost[next(iter(self.lost))]

    def give_up_lost(self, patience_s: float, now: float) -> None:
        """Expect nobody back who has been missing for so long."""
        self.lost = {device: since for device, since in self.lost.items() if now < since + patience_s}

    def is_last_with_state(self, device: str) -> bool:
        """Whether somebody may still need the state that this member alone holds."""
        others = set(self.standing(Standing.ACTIVE)) - {device}
        in_need = bool(self.standing(Standing.HEALING)) or bool(self.lost)
        return in_need and not others and self[device].standing is not Standing.HEALING

    def furthest(self) -> Member | None:
        """Return the member whose own state is of the latest step."""
        states = [member for member in self.values() if member.joining.next_step is not None]
        return max(states, key=lambda member: member.joining.next_step or 0, default=None)

    def standing_of_returning(self, joining: Joining, oldest: int, step: int) -> Standing:
        """Return where a device stands that joins a session in training with a state of its own.

        Args:
            joining: the device; its `next_step` is set.
            oldest: the first step from which on its stream can carry everything.
            step: the session's.

        """
        if not oldest <= (joining.next_step or 0) <= step:
            return Standing.HEALING
        before = self.get(joining.device)
        if before is not None and before.token == joining.token and before.standing is Standing.ACTIVE:
            return Standing.ACTIVE
        return Standing.LAGGING
