"""The plots of the convergence benchmark."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes

from benchmarks.convergence.study import Study
from benchmarks.convergence.trials import learning_task

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLOURS = {"ours": "#0b6e4f", "first-order": "#b5651d", "second-order peer": "#4a6fa5"}
_CURVES = 3
"""Of each family so many methods are drawn, the best ones."""


def plot_convergence(path: Path, studies: Sequence[Study]) -> None:
    """Draw, for each task, the metric against the batches of a device, and the batches to the target of all methods."""
    tasks = list({study.task: None for study in studies})
    figure, axes = plt.subplots(len(tasks), 2, figsize=(13, 4 * len(tasks)), dpi=110, squeeze=False)
    for (left, right), name in zip(axes, tasks, strict=True):
        of_task = sorted((study for study in studies if study.task == name), key=lambda study: study.median)
        _draw_curves(left, name, of_task)
        _draw_bars(right, name, of_task)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _draw_curves(axes: Axes, name: str, studies: Sequence[Study]) -> None:
    task = learning_task(name)
    for family, colour in _COLOURS.items():
        best = [study for study in studies if study.family == family][:_CURVES]
        for style, study in zip(("-", "--", ":"), best, strict=False):
            axes.plot(*zip(*study.curve, strict=True), style, color=colour, label=study.method, linewidth=1.8)
    axes.axhline(task.target, color="0.5", linewidth=0.8)
    axes.set(title=f"{task.name}, {task.describes}", xlabel="batches of each device", ylabel=f"test {task.metric}")
    finite = [value for study in studies for _, value in study.curve if math.isfinite(value)]
    if task.metric == "loss":
        axes.set_ylim(min(finite) * 0.97, sorted(finite)[int(0.97 * len(finite))])
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.25)


def _draw_bars(axes: Axes, name: str, studies: Sequence[Study]) -> None:
    budget = learning_task(name).budget
    shown = list(reversed(studies))
    lengths = [min(study.median, budget) for study in shown]
    axes.barh(range(len(shown)), lengths, color=[_COLOURS[study.family] for study in shown])
    for row, (study, length) in enumerate(zip(shown, lengths, strict=True)):
        axes.text(length, row, f" {length:g}" if study.median <= budget else f" >{budget}", va="center", fontsize=7)
    axes.set_yticks(range(len(shown)), [study.method for study in shown], fontsize=7)
    axes.set(xlabel="median batches of each device to the target", xlim=(0, 1.12 * max(lengths)))
