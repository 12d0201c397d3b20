"""Which waits of a session are worth telling people: those that last, not the moments that every step has."""

from dataclasses import dataclass

from edgenewton.common.progress import PAUSE_S

from coordinator.session.decisions import Phase
from coordinator.session.session import Session
from coordinator.telemetry.statistics import SessionStatistics

HELD_UP_S = 1.0
"""Seconds from which on it is told for whom the others wait."""
SILENT_S = 2.0
"""Seconds in which nothing came from any device, from which on that is told at the earliest."""
_MANY_TIMES = 3
"""It is told of a silence that lasts so many times as long as an exchange usually takes."""
_HEARTBEATS = 2
"""A device that missed so many signs of life is silent."""


@dataclass(frozen=True)
class Waiting:
    """For whom a session waits."""

    devices: tuple[str, ...]
    unknown: int
    """So many more that nobody knows the names of yet."""
    seconds: float | None
    """For how long; None before anybody has come."""


def waiting(session: Session, statistics: SessionStatistics, now: float, clock: float) -> Waiting | None:
    """Return for whom a session waits, if it is worth telling.

    Args:
        session: the session.
        statistics: of it.
        now: seconds since the Unix epoch, as the statistics know it.
        clock: the same moment in the session's time.

    """
    wait = session.wait
    if wait is None:
        return None
    seconds = None if wait.since is None else max(0.0, clock - wait.since)
    if session.phase is not Phase.GATHERING:
        per_s = statistics.batches_per_s(now)
        usual_s = PAUSE_S if not per_s else max(SILENT_S, _MANY_TIMES * statistics.every / per_s)
        if seconds is None or seconds < (HELD_UP_S if wait.is_held_up else usual_s):
            return None
    return Waiting(wait.devices, wait.unknown, seconds)


def silent_s(session: Session, device: str, clock: float) -> float:
    """Return for how long a member has given no sign of life; 0 if it is no member, or not for longer than usual."""
    member = session.members.get(device)
    if member is None:
        return 0.0
    seconds = clock - member.heard_at
    return seconds if seconds >= _HEARTBEATS * session.settings.heartbeat_s else 0.0
