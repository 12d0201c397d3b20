"""What the page is told of the sessions, as plain data for JSON."""

import time
from dataclasses import asdict
from typing import Any

from edgenewton.common.progress import seconds_left

from coordinator.session.members import Member
from coordinator.session.session import Session
from coordinator.telemetry.metrics import WatchedSession
from coordinator.telemetry.statistics import Curves, DeviceStatistics
from coordinator.telemetry.waiting import Waiting, silent_s, waiting

MAX_DEVICES = 200
"""So many devices are shown; those with a place come first, then those that were there last."""
MAX_INCIDENTS = 40
MAX_AWAITED = 3
"""So many of the devices that the session waits for are named; the others are counted."""
CURVES = tuple(Curves.__dataclass_fields__)

State = dict[str, Any]


def describe(room: WatchedSession, now: float, since: int | None = None) -> State:
    """Return all that the page shows of a session.

    Args:
        room: the session.
        now: seconds since the Unix epoch.
        since: curves are told from the step after this one; None for all that is kept.

    """
    session, statistics = room.session, room.chronicle.statistics
    members = session.members
    per_s = statistics.batches_per_s(now)
    clock = time.monotonic()
    wait = waiting(session, statistics, now, clock)
    present = sorted((d for d in statistics.devices.values() if d.device in members), key=lambda d: d.device)
    gone = sorted(
        (d for d in statistics.devices.values() if d.device not in members), key=lambda d: (-d.seen_at, d.device)
    )
    incidents = sorted((*statistics.incidents, *statistics.refused), key=lambda h: h.time_s)[-MAX_INCIDENTS:]
    return {
        "name": statistics.name,
        "phase": statistics.phase,
        "reason": statistics.reason,
        "codec": session.settings.codec,
        "masked": session.settings.secure_aggregation,
        "privacy": statistics.privacy.figures(),
        "began_at": statistics.began_at,
        "ended_at": statistics.ended_at,
        "step": statistics.step,
        "steps": statistics.steps,
        "every": statistics.every,
        "cadence": statistics.cadence,
        "form": statistics.form,
        "done": statistics.done,
        "run_steps": statistics.run_steps,
        "batches_per_s": per_s,
        "left_s": seconds_left(statistics.done, statistics.run_steps, per_s),
        "wait": None if wait is None else _wait(wait, now),
        "samples": statistics.samples,
        "loss": statistics.curves.loss.last,
        "accuracy": statistics.curves.accuracy.last,
        "best": statistics.best,
        "averages": statistics.averages,
        "received": statistics.received,
        "sent": statistics.sent,
        "saved": statistics.saved,
        "left_out": statistics.left_out,
        "skipped": statistics.skipped,
        "refusals": dict(statistics.refusals),
        "places": session.settings.capacity,
        "quorum": session.settings.required,
        "members": len(members),
        "gone": len(gone),
        "devices": [
            _device(device, members.get(device.device), statistics.step, now)
            | _signs(device.device, session, wait, now, clock)
            for device in (*present, *gone)[:MAX_DEVICES]
        ],
        "incidents": [asdict(incident) for incident in reversed(incidents)],
        "curves": {name: _points(statistics.curves, name, since) for name in CURVES},
        "settings": session.settings.model_dump(mode="json"),
        "options": dict(session.admission.options),
        "model": session.admission.model,
    }


def _points(curves: Curves, name: str, since: int | None) -> list[tuple[int, float]]:
    curve = getattr(curves, name)
    return list(curve) if since is None else curve.since(since)


def _wait(wait: Waiting, now: float) -> State:
    return {
        "devices": wait.devices[:MAX_AWAITED],
        "more": max(0, len(wait.devices) - MAX_AWAITED) + wait.unknown,
        "since": None if wait.seconds is None else _ago(wait.seconds, now),
    }


def _signs(device: str, session: Session, wait: Waiting | None, now: float, clock: float) -> State:
    is_awaited = wait is not None and device in wait.devices
    silence_s = silent_s(session, device, clock)
    return {
        "awaited_since": _ago(wait.seconds, now) if is_awaited and wait and wait.seconds is not None else None,
        "silent_since": _ago(silence_s, now) if silence_s else None,
    }


def _ago(seconds: float, now: float) -> float:
    """Return when something began; rounded, so that it stays the same as long as it lasts."""
    return round(now - seconds, 1)


def _device(device: DeviceStatistics, member: Member | None, step: int | None, now: float) -> State:
    received_per_s, sent_per_s = device.rates(now)
    return {
        "device": device.device,
        "state": _standing(device, member),
        "software": device.software,
        "training_samples": device.training_samples,
        "step": device.step,
        "batches": device.batches,
        "loss": device.loss,
        "epsilon": device.epsilon,
        "lag_s": device.lag_s,
        "lag_steps": max(0, step - device.step) if step is not None and device.step is not None else None,
        "received": device.received,
        "sent": device.sent,
        "saved": device.saved,
        "received_per_s": received_per_s,
        "sent_per_s": sent_per_s,
        "left_out": device.left_out,
        "skipped": device.skipped,
        "healings": device.healings,
        "set_aside": device.set_aside,
        "set_aside_until": device.set_aside_until,
        "unlike": device.unlike,
        "last_error": device.last_error,
        "last_error_at": device.last_error_at,
        "seen_at": device.seen_at,
    }


def _standing(device: DeviceStatistics, member: Member | None) -> str:
    if member is None:
        return device.state if device.is_gone else "gone"
    if not member.is_connected:
        return "away"
    return member.standing.name.lower()
