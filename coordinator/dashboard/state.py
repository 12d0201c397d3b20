"""What the page is told of the sessions, as plain data for JSON."""

from dataclasses import asdict
from typing import Any

from coordinator.session.members import Member
from coordinator.telemetry.metrics import WatchedSession
from coordinator.telemetry.statistics import Curves, DeviceStatistics

MAX_DEVICES = 200
"""So many devices are shown; those with a place come first, then those that were there last."""
MAX_HAPPENINGS = 40
CURVES = tuple(Curves.__dataclass_fields__)

State = dict[str, Any]


def describe(room: WatchedSession, now: float, since: int | None = None) -> State:
    """Return all that the page shows of a session.

    Args:
        room: the session.
        now: seconds since the Unix epoch.
        since: curves are told from the step after this one; None for all that is kept.

    """
    session, told = room.session, room.chronicle.statistics
    members = session.members
    present = sorted((d for d in told.devices.values() if d.device in members), key=lambda d: d.device)
    gone = sorted((d for d in told.devices.values() if d.device not in members), key=lambda d: (-d.seen_at, d.device))
    happenings = sorted((*told.happenings, *told.refused), key=lambda h: h.time_s)[-MAX_HAPPENINGS:]
    return {
        "name": told.name,
        "phase": told.phase,
        "reason": told.reason,
        "codec": session.settings.codec,
        "began_at": told.began_at,
        "ended_at": told.ended_at,
        "step": told.step,
        "steps": told.steps,
        "steps_per_s": told.steps_per_s(now),
        "samples": told.samples,
        "loss": told.curves.loss.last,
        "accuracy": told.curves.accuracy.last,
        "received": told.received,
        "sent": told.sent,
        "saved": told.saved,
        "left_out": told.left_out,
        "refusals": dict(told.refusals),
        "places": session.settings.capacity,
        "quorum": session.settings.required,
        "members": len(members),
        "gone": len(gone),
        "devices": [
            _device(device, members.get(device.device), told.step, now) for device in (*present, *gone)[:MAX_DEVICES]
        ],
        "happenings": [asdict(happening) for happening in reversed(happenings)],
        "curves": {name: _points(told.curves, name, since) for name in CURVES},
        "settings": session.settings.model_dump(mode="json"),
        "options": dict(session.admission.options),
    }


def _points(curves: Curves, name: str, since: int | None) -> list[tuple[int, float]]:
    curve = getattr(curves, name)
    return list(curve) if since is None else curve.since(since)


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
        "lag_s": device.lag_s,
        "lag_steps": max(0, step - device.step) if step is not None and device.step is not None else None,
        "received": device.received,
        "sent": device.sent,
        "saved": device.saved,
        "received_per_s": received_per_s,
        "sent_per_s": sent_per_s,
        "left_out": device.left_out,
        "healings": device.healings,
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
