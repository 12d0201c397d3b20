"""Puts a report together."""

import platform
import time
from collections.abc import Iterable
from importlib import resources
from importlib.metadata import version
from itertools import groupby

from edgenewton.v1 import PROTOCOL_VERSION
from edgenewton.v1.tensor_spec import TensorSpec
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from coordinator.report.names import shorten
from coordinator.report.plots import plots
from coordinator.report.run import Run

MAX_INCIDENTS = 300
_UNITS = ("B", "kB", "MB", "GB", "TB")


def render(run: Run) -> str:
    """Return a report as one HTML page that refers to nothing outside it."""
    # Names and reasons come from devices; the template escapes all but the plots.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"bytes": as_bytes, "when": as_time, "duration": as_duration, "percent": as_percent}
    template = environment.from_string((resources.files(__package__) / "report.html").read_text())
    accuracies = run.accuracies
    incidents = run.incidents[-MAX_INCIDENTS:]
    return template.render(
        run=run,
        plots={title: Markup(svg) for title, svg in plots(run).items()},
        accuracy=accuracies[-1][1] if accuracies else None,
        best=run.best_of_all,
        loss=run.last_loss,
        devices=sorted(run.devices.values(), key=lambda device: device.device),
        short=shorten({*run.devices, *(incident.device for incident in incidents)}),
        incidents=incidents,
        hidden=max(0, len(run.incidents) - MAX_INCIDENTS),
        model=list(_summarise(run.tensors)),
        versions={
            "edgenewton": version("edgenewton"),
            "protocol": PROTOCOL_VERSION,
            "Python": platform.python_version(),
            "devices": ", ".join(sorted({d.software for d in run.devices.values() if d.software})) or "–",
        },
        now=time.time(),
    )


def as_bytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    value, unit = abs(float(count)), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{'-' if count < 0 else ''}{value:.{digits}f} {_UNITS[unit]}"


def as_time(time_s: float | None) -> str:
    """Return a time since the Unix epoch as people read it, in UTC."""
    return "–" if time_s is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_s))


def as_duration(seconds: float) -> str:
    """Return a duration as people read it."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def as_percent(part: float | None) -> str:
    """Return a part as people read it."""
    return "–" if part is None else f"{part:.1%}"


def _summarise(tensors: Iterable[TensorSpec]) -> Iterable[tuple[str, int, int]]:
    """Yield for each kind of tensor how many there are, and how many elements they have."""
    for kind, group in groupby(sorted(tensors, key=lambda spec: spec.kind), key=lambda spec: spec.kind):
        sizes = [spec.size for spec in group]
        yield kind, len(sizes), sum(sizes)
