"""The report's plots, as SVG that stands in the page itself."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from coordinator.report.run import Run

_A, _B, _QUIET = "#0f766e", "#b45309", "#5d6966"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # the reader's own fonts
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _QUIET,
    "axes.edgecolor": "#cfd8d5",
    "axes.labelcolor": _QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e8e6",
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}

_DASHED = (0, (4, 4))
"""Of the second curve of a plot, which lies above the first: both are seen where they are equal."""
_MANY_TIMES = 30
"""Values of which the largest is so many times the smallest can only be told apart by their powers; so on the page."""

Points = Sequence[tuple[float, float]]


def plots(run: Run) -> dict[str, str]:
    """Return the plots that the run has data for, each an SVG element, by title."""
    drawn = {
        "Accuracy on held-out samples": _plot_accuracy(run.accuracies),
        "Loss": _plot_loss(run),
        "Seconds for a step": _plot_seconds(run),
        "Bytes exchanged": _plot_bytes(run),
    }
    return {title: svg for title, svg in drawn.items() if svg}


def _plot_accuracy(points: Points) -> str:
    def draw(axes: Axes) -> None:
        axes.plot(*zip(*points, strict=True), color=_A, marker="o" if len(points) < 30 else None, markersize=3.5)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return _draw("accuracy", draw) if points else ""


def _plot_loss(run: Run) -> str:
    points = [(step.step, step.loss) for step in run.steps if step.loss is not None]

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*points, strict=True), color=_A)
        if _set_scale(axes, [loss for _, loss in points]):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}".replace("e-0", "e-")))

    return _draw("loss", draw) if points else ""


def _set_scale(axes: Axes, values: Sequence[float]) -> bool:
    """Take a logarithmic scale for values that span decades, and else one that begins at 0; return whether it did."""
    positive = [value for value in values if value > 0]
    is_log = bool(positive) and min(values) >= 0 and _MANY_TIMES * min(positive) <= max(positive)
    if is_log:
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    return is_log


def _plot_seconds(run: Run) -> str:
    def draw(axes: Axes) -> None:
        seconds = [step.seconds for step in run.steps]
        axes.plot([step.step for step in run.steps], seconds, color=_A, linewidth=1)
        _set_scale(axes, seconds)
        axes.yaxis.set_major_formatter(EngFormatter(unit="s"))
        late = [(step.step, step.seconds) for step in run.steps if step.left_out]
        if late:
            at, took = zip(*late, strict=True)
            axes.scatter(at, took, color=_B, s=14, zorder=3, label="a device was not in time")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)

    return _draw("seconds", draw) if run.steps else ""


def _plot_bytes(run: Run) -> str:
    def draw(axes: Axes) -> None:
        steps = [step.step for step in run.steps]
        wire = [step.received + step.sent for step in run.steps]
        axes.plot(steps, wire, color=_A, label="on the wire")
        if run.saved:
            float32 = [bytes_ + step.saved for bytes_, step in zip(wire, run.steps, strict=True)]
            axes.plot(steps, float32, color=_B, linestyle=_DASHED, label="in float32")
            axes.legend(loc="upper left")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(unit="B"))

    return _draw("bytes", draw) if run.steps else ""


def _draw(name: str, draw: Callable[[Axes], None]) -> str:
    style: Any = _STYLE | {"svg.hashsalt": name}  # the names of all settings are no type to write down
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5, 2.5), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    # What comes before the element, and the size in points, belong to a file of its own.
    svg = svg[svg.index("<svg") :]
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
