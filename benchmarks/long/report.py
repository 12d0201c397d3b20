"""The tables and the figures of the long benchmark."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.long.curves import NEVER, best_variant, final_accuracy, smoothed
from benchmarks.long.fleet_data import BATCH_SIZE, DEVICES
from benchmarks.long.results import Contest, Setting, finite
from benchmarks.long.tasks import long_task
from benchmarks.long.trials import Trial
from benchmarks.shared.record_store import options_text
from benchmarks.shared.results import markdown_table

Missing = Mapping[str, Mapping[str, int]]
"""Of each task, how many trials of each method are still to be run, as far as is known."""


def tables(contests: Sequence[Contest], missing: Missing) -> str:
    """Return the results in Markdown: what ours need of the best baseline's, then a table for each task."""
    rows = [_summary(contest) for contest in contests]
    header = [
        *("task", "target", "best baseline", "its batches", "ours", "ratio", "CPU", "bytes", "second order"),
        *("best first-order", "ratio to it", "CPU to it"),
    ]
    note = (
        f"{DEVICES} devices x {BATCH_SIZE} samples. Target: the best baseline's final accuracy less half a point. "
        "Ours: one default for all tasks. Ratios are ours over the least that any baseline took, below 1 where ours "
        "need less; CPU in steps of SGD. To the best first-order method the target is that one's own.\n\n"
    )
    parts = [f"{note}{markdown_table(header, rows)}\n", *(_table(contest, missing) for contest in contests)]
    return "\n".join(parts)


def figures(contests: Sequence[Contest]) -> list[dict[str, Any]]:
    """Return the results as JSON holds them, with null for what is infinite."""
    return [
        {
            "task": contest.task,
            "partition": long_task(contest.task).partition,
            "is_for_defaults": long_task(contest.task).is_for_defaults,
            "target": None if contest.target is None else round(contest.target, 4),
            "ratios": {name: None if (r := contest.ratio(name)) is None else finite(r) for name in vars(NEVER)},
            "settings": [_figures(setting, contest.target) for setting in contest.settings],
        }
        for contest in contests
    ]


def curve(setting: Setting) -> list[tuple[int, float]]:
    """Return batches and accuracy: the median over the seeds, smoothed as the costs are."""
    of_trials = [smoothed(trial.points, best_variant(trial)) for trial in setting.trials]
    shortest = min(len(values) for values in of_trials)
    return [
        (of_trials[0][at][0].batches, round(statistics.median(values[at][1] for values in of_trials), 4))
        for at in range(shortest)
    ]


def trial_line(trial: Trial) -> str:
    """Return a trial in one line."""
    cost = ""
    last = trial.points[-1] if trial.points else None
    if last is not None:
        of_batch = last.device_s / last.batches
        steps = of_batch / trial.sgd_step_s
        cost = f"; {of_batch * 1e3:.1f} ms a batch, {steps:.2f} steps of SGD; {last.megabytes:.1f} MB"
    return (
        f"{trial.task}, {trial.method}, {options_text(trial.options)}, seed {trial.seed}: {trial.end} after "
        f"{last.batches if last else 0} of {trial.batches} batches; accuracy {final_accuracy(trial):.4f} "
        f"({best_variant(trial)}){cost}"
    )


def curve_line(trial: Trial) -> str:
    """Return a trial's accuracy after 20, 60, and every hundred batches."""
    variant = best_variant(trial)
    points = [point for point in trial.points if point.batches in (20, 60) or point.batches % 100 == 0]
    return ", ".join(f"{point.batches}: {point.accuracy(variant):.3f}" for point in points)


def verdict(contest: Contest) -> str:
    """Return in a word whether second order helps on a task."""
    ratio = contest.ratio("batches")
    if ratio is None:
        return "not known yet"
    if math.isinf(ratio):
        return "does not help: not reached"
    if ratio <= 1 / 1.5:
        return "helps"
    return "helps a little" if ratio < 1 else "does not help"


def _summary(contest: Contest) -> list[Any]:
    of_all = _of_baselines(contest, ["batches", "sgd_steps", "megabytes"])
    of_first_order = _of_baselines(contest.against("first-order"), ["batches", "sgd_steps"])
    target = None if contest.target is None else f"{contest.target:.3f}"
    best_first_order, _, _, *ratios = of_first_order
    return [contest.task, target, *of_all, verdict(contest), best_first_order, *ratios]


def _of_baselines(contest: Contest, figures: Sequence[str]) -> list[str | None]:
    """Return the best baseline, what it and ours took, and ratios."""
    ours, target = contest.ours, contest.target
    if ours is None or target is None:
        return [None] * (3 + len(figures))
    best = contest.best_baseline("batches")
    batches = [_number(setting.cost(target).batches, 0) for setting in (best, ours)]
    return [best.method.title, *batches, *(_number(contest.ratio(name), 2) for name in figures)]


def _table(contest: Contest, missing: Missing) -> str:
    rows = [_row(setting, contest.target) for setting in sorted(contest.of_methods(), key=lambda s: -s.accuracy)]
    header = [
        "method",
        "options",
        "batches",
        "seeds",
        "accuracy",
        "batches to target",
        "CPU s",
        "SGD steps",
        "MB",
    ]
    left = ", ".join(f"{count} of {name}" for name, count in missing.get(contest.task, {}).items())
    kind = long_task(contest.task)
    use = "defaults may be chosen on it" if kind.is_for_defaults else "no default was chosen on it"
    title = f"## {contest.task}\n\nPartition {kind.partition}; {use}.\n\n"
    return f"{title}{markdown_table(header, rows)}\n" + (f"\nTrials to come: {left}.\n" if left else "")


def _row(setting: Setting, target: float | None) -> list[Any]:
    cost = NEVER if target is None else setting.cost(target)
    title = setting.method.title
    return [
        f"**{title}**" if setting.method.is_ours else title,
        options_text(setting.options),
        setting.batches,
        len(setting.trials),
        f"{setting.accuracy:.4f}",
        _number(cost.batches, 0),
        _number(cost.device_s, 2),
        _number(cost.sgd_steps, 0),
        _number(cost.megabytes, 1),
    ]


def _figures(setting: Setting, target: float | None) -> dict[str, Any]:
    cost = NEVER if target is None else setting.cost(target)
    return {
        "method": setting.method.name,
        "family": setting.method.family,
        "options": dict(setting.options),
        "batches": setting.batches,
        "seeds": [trial.seed for trial in setting.trials],
        "diverged": sum(trial.end == "diverged" for trial in setting.trials),
        "evaluated": [best_variant(trial) for trial in setting.trials],
        "final_accuracy": round(setting.accuracy, 4),
        "to_target": {name: finite(value) for name, value in vars(cost).items()},
        "settings": dict(setting.trials[0].settings),
        "sgd_step_ms": round(1e3 * statistics.median(trial.sgd_step_s for trial in setting.trials), 3),
        "sgd_steps_per_batch": _steps_per_batch(setting),
        "curve": curve(setting),
    }


def _steps_per_batch(setting: Setting) -> float | None:
    ends = [(trial, trial.points[-1]) for trial in setting.trials if trial.points]
    costs = [end.seconds(best_variant(trial)) / end.batches / trial.sgd_step_s for trial, end in ends]
    return finite(statistics.median(costs)) if costs else None


def _number(value: float | None, digits: int) -> str | None:
    if value is None:
        return None
    return f"{value:.{digits}f}" if math.isfinite(value) else "not reached"
