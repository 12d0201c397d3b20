"""The plots of the frontier benchmark: batches against bytes to the target, a line for each method."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from benchmarks.convergence.trials import learning_task
from benchmarks.frontier.front import pareto_front
from benchmarks.frontier.study import Study

mpl.use("Agg")
from matplotlib import pyplot as plt

_OURS = "#0b6e4f"
_LINES: Mapping[str, str] = {"fp32": ":", "int8": "-."}
"""By how much a method compresses; what compresses more has a solid line."""


def plot_frontier(path: Path, studies: Sequence[Study]) -> None:
    """Draw what every method of a task takes: its Pareto points, joined; left and below is better."""
    reached = [study for study in studies if study.points]
    # The way to train has the colour, how it is compressed the marker and the line.
    ways = list(dict.fromkeys(_way(study) for study in reached if study.family != "ours"))
    codecs = list(dict.fromkeys(_codec(study) for study in reached))
    colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    figure, axes = plt.subplots(figsize=(13, 8), dpi=110)
    for study in sorted(reached, key=lambda study: (study.family == "ours", study.chosen.bytes)):
        is_ours = study.family == "ours"
        front = pareto_front(study.points)
        axes.plot(
            [point.bytes / 1e3 for point in front],
            [point.batches for point in front],
            color=_OURS if is_ours else colours[ways.index(_way(study)) % len(colours)],
            linestyle="-" if is_ours else _LINES.get(_codec(study), "-"),
            marker="*" if is_ours else "osD^vPXhp<>"[codecs.index(_codec(study)) % 11],
            markersize=15 if is_ours else 5,
            linewidth=3 if is_ours else 1.1,
            alpha=1.0 if is_ours else 0.8,
            zorder=3 if is_ours else 2,
            label=study.method,
        )
    task = learning_task(studies[0].task)
    sign = "≤" if task.metric == "loss" else "≥"
    axes.set(
        title=f"{task.name}, {task.describes}: test {task.metric} {sign} {task.target:g}",
        xlabel="kB of each device, each way",
        ylabel="batches of each device",
        xscale="log",
        yscale="log",
    )
    for axis in (axes.xaxis, axes.yaxis):  # 200, not 2 x 10^2
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.8)))
    axes.grid(which="both", alpha=0.2)
    if reached:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _way(study: Study) -> str:
    return study.method.rpartition(", ")[0] or study.method


def _codec(study: Study) -> str:
    return study.method.rpartition(", ")[2]
