"""The plot of the long benchmark: accuracy against batches, processor time and bytes, a row for each task."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

from benchmarks.long.curves import best_variant, smoothed
from benchmarks.long.methods import METHODS
from benchmarks.long.results import Contest, Setting
from benchmarks.long.training import Variant
from benchmarks.long.trials import Point, Trial

mpl.use("Agg")
from matplotlib import pyplot as plt

_OURS = "#0b6e4f"
_COSTS: Sequence[tuple[str, Callable[[Trial, Point, Variant], float]]] = (
    ("batches of each device", lambda _trial, point, _variant: point.batches),
    ("CPU of each device, in steps of SGD", lambda trial, point, variant: point.seconds(variant) / trial.sgd_step_s),
    ("MB of each device, each way", lambda _trial, point, _variant: point.megabytes),
)


def plot_long(path: Path, contests: Sequence[Contest]) -> None:
    """Draw the medians over the seeds of the whole trials of every method."""
    shown = [contest for contest in contests if contest.settings]
    if not shown:
        return
    figure, axes = plt.subplots(len(shown), len(_COSTS), figsize=(15, 4 * len(shown)), dpi=110, squeeze=False)
    colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    baselines = [name for name, method in METHODS.items() if not method.is_ours]
    for row, contest in zip(axes, shown, strict=True):
        settings = [setting for setting in contest.of_methods() if setting.batches == contest.length]
        for own, (label, cost) in zip(row, _COSTS, strict=True):
            lowest = 1.0
            for setting in settings:
                method = setting.method
                x, y = _curve(setting, cost)
                lowest = min([lowest, *y[len(y) // 10 :]])
                own.plot(
                    x,
                    y,
                    "--" if method.is_ours and setting is not contest.ours else "-",
                    color=_OURS if method.is_ours else colours[baselines.index(method.name) % len(colours)],
                    linewidth=2.6 if setting is contest.ours else 1.3,
                    label=method.title,
                )
            if contest.target is not None:
                own.axhline(contest.target, color="0.5", linewidth=0.8)
            own.set(title=contest.task, xlabel=label, ylabel="test accuracy", ylim=(lowest, None))
            own.grid(alpha=0.25)
        row[0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _curve(setting: Setting, cost: Callable[[Trial, Point, Variant], float]) -> tuple[list[float], list[float]]:
    """Return the medians of cost and accuracy at each evaluation that all trials have come to."""
    of_trials = []
    for trial in setting.trials:
        variant = best_variant(trial)
        of_trials.append([(cost(trial, point, variant), value) for point, value in smoothed(trial.points, variant)])
    at_once = list(zip(*of_trials, strict=False))
    return (
        [statistics.median(x for x, _ in values) for values in at_once],
        [statistics.median(y for _, y in values) for values in at_once],
    )
