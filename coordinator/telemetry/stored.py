"""What is stored of a session's statistics: JSON, without the curves, which come back from the recorded steps."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from edgenewton.common.progress import Best
from edgenewton.v1.privacy_options import AgreedBudget

from coordinator.telemetry.statistics import DeviceStatistics, Incident, SessionStatistics


def dump_statistics(statistics: SessionStatistics) -> str:
    """Return the text that `load_statistics` reads."""
    content = {
        "totals": {
            "codec": statistics.codec,
            "phase": statistics.phase,
            "reason": statistics.reason,
            "began_at": statistics.began_at,
            "ended_at": statistics.ended_at,
            "step": statistics.step,
            "steps": statistics.steps,
            "every": statistics.every,
            "cadence": statistics.cadence,
            "form": statistics.form,
            "samples": statistics.samples,
            "left_out": statistics.left_out,
            "set_aside": statistics.set_aside,
            "skipped": statistics.skipped,
            "step_seconds": statistics.step_seconds,
            "step_buckets": statistics.step_buckets,
            "received": statistics.received,
            "sent": statistics.sent,
            "saved": statistics.saved,
            "best": statistics.best,
            "least_in_sum": statistics.least_in_sum,
            "budget": None if statistics.budget is None else asdict(statistics.budget),
        },
        "refusals": statistics.refusals,
        "devices": [_device_content(device) for device in statistics.devices.values()],
        "incidents": [asdict(incident) for incident in statistics.incidents],
        "refused": [asdict(incident) for incident in statistics.refused],
    }
    return json.dumps(content)


def load_statistics(name: str, text: str) -> SessionStatistics:
    """Return the statistics of a session, as far as they were stored.

    Raises:
        ValueError: the text is not what `dump_statistics` wrote.

    """
    try:
        content = json.loads(text)
        totals = content["totals"]
        statistics = SessionStatistics(
            name,
            codec=totals["codec"],
            phase=totals["phase"],
            reason=totals["reason"],
            began_at=totals["began_at"],
            ended_at=totals["ended_at"],
            step=totals["step"],
            steps=totals["steps"],
            every=totals.get("every", 1),  # older records have none
            cadence=totals.get("cadence", ""),
            form=totals.get("form", ""),
            samples=totals["samples"],
            left_out=totals["left_out"],
            set_aside=totals.get("set_aside", 0),  # older records have none
            skipped=totals.get("skipped", 0),
            step_seconds=totals["step_seconds"],
            step_buckets=totals["step_buckets"],
            received=totals["received"],
            sent=totals["sent"],
            saved=totals["saved"],
            best=Best(*totals["best"]) if totals.get("best") else None,
            least_in_sum=totals.get("least_in_sum", 0),
            budget=AgreedBudget(**totals["budget"]) if totals.get("budget") else None,
            refusals=Counter(content["refusals"]),
            devices={entry["device"]: DeviceStatistics(**entry) for entry in content["devices"]},
        )
        # Records from before they had that name have "happenings".
        incidents = content["incidents"] if "incidents" in content else content["happenings"]
        statistics.incidents.extend(Incident(**entry) for entry in incidents)
        statistics.refused.extend(Incident(**entry) for entry in content["refused"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the statistics of session {name!r} cannot be read: {error!r}") from None
    return statistics


def _device_content(device: DeviceStatistics) -> dict[str, Any]:
    """Return what is stored of a device: all but what its present membership has exchanged."""
    content = dict(vars(device))
    del content["_counted"]
    return content
