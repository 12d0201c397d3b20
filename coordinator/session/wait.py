"""For whom a session waits, and since when: the first thing to know when nothing goes on. It decides nothing."""

from dataclasses import dataclass

from coordinator.session.gathering import Gathering
from coordinator.session.members import Standing
from coordinator.session.roster import Roster
from coordinator.session.step import Step


@dataclass(frozen=True)
class Wait:
    """What a session waits for."""

    devices: tuple[str, ...]
    """Those without which it does not go on, by name."""
    since: float | None
    """In the session's time; None if nothing has happened yet."""
    unknown: int = 0
    """So many more that nobody knows the names of yet."""
    is_held_up: bool = True
    """Whether somebody is held up by it: else all do what they do at this point of every step."""


def wait_to_begin(gathering: Gathering) -> Wait:
    """Return for whom a session waits before its first step."""
    missing = sorted(gathering.missing)
    return Wait(tuple(missing), gathering.since, max(0, gathering.expected - gathering.has_come - len(missing)))


def wait_in_step(
    members: Roster, step: Step, required: int, missing_since: float | None, active_at: float | None
) -> Wait | None:
    """Return for whom a step waits; None if it does not.

    Args:
        members: of the session.
        step: the one that is on.
        required: so many devices are needed.
        missing_since: since when fewer have a place; None if enough have.
        active_at: when anything came from any device.

    """
    if missing_since is not None and members.lost:
        # It was waited for before its place was taken away.
        known = (missing_since, active_at, step.completed_at)
        return Wait(tuple(sorted(members.lost)), min(since for since in known if since is not None))
    active = members.standing(Standing.ACTIVE)
    awaited = {device for device in active if device not in step.contributions}
    if len(active) < required:
        awaited |= set(members.standing(Standing.LAGGING, Standing.HEALING))
    if not awaited:
        return None
    if step.completed_at is None:  # while all still compute, none holds up another
        return Wait(tuple(sorted(awaited)), active_at, is_held_up=False)
    return Wait(tuple(sorted(awaited)), step.completed_at)
