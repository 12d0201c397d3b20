"""A study: one method on one task, searched on the first seed, its best options run with all seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.convergence.trials import learning_task
from benchmarks.frontier.front import Point
from benchmarks.frontier.interface import Family, Method, Options
from benchmarks.frontier.search import Rank, search
from benchmarks.frontier.trials import Trial, TrialStore, run_trial
from benchmarks.shared.record_store import options_text


@dataclass(frozen=True)
class Extent:
    """How much is run."""

    folder: Path
    """Where trials are kept."""
    trials: int
    """Of each search."""
    seeds: int
    """Of the runs with the options that a search has chosen."""
    budget_factor: float
    """A trial is given up after so many times the batches that the task grants in the convergence benchmark."""
    is_stored: bool
    """Whether nothing is run."""

    def budget(self, task: str) -> int:
        """Return the batches of each device after which a trial is given up."""
        return math.ceil(self.budget_factor * learning_task(task).budget)

    def store(self, task: str, method: Method) -> TrialStore:
        """Return the trials of a method on a task."""
        return TrialStore(self.folder / task / f"{method.name}.jsonl")


@dataclass(frozen=True)
class Setting:
    """Options of a method, and what they took: medians over the seeds that were run, infinite for not reached."""

    options: Mapping[str, float]
    batches: float
    bytes: float
    exchanges: float
    seeds_reached: int
    seeds: int
    rank: Rank
    """On the first seed."""

    @property
    def point(self) -> Point:
        """What it took."""
        return Point(self.batches, self.bytes)


@dataclass(frozen=True)
class Study:
    """What is known of a method on a task."""

    task: str
    method: str
    family: Family
    is_compressed: bool
    settings: Sequence[Setting]
    """The chosen one first."""

    @property
    def chosen(self) -> Setting:
        """The options that took the fewest bytes on the first seed."""
        return self.settings[0]

    @property
    def points(self) -> list[Point]:
        """What its settings took that reached the target."""
        return [setting.point for setting in self.settings if math.isfinite(setting.bytes)]


def study(extent: Extent, task: str, method: Method) -> Study | None:
    """Search a method's options on a task, run the best with all seeds, and say what is known; None for nothing."""
    store = extent.store(task, method)
    if extent.is_stored:
        return summary(task, method, store.all())
    budget = extent.budget(task)
    trials: list[Trial] = []

    def run(options: Options, seed: int, beaten_by: Sequence[Point]) -> Trial:
        key = (task, method.name, options_text(options), seed)
        trial = store.find(key, budget, beaten_by)
        if trial is None:
            trial = run_trial(task, method, options, seed, budget, beaten_by)
            store.add(trial)
            print(_line(trial), flush=True)
        trials.append(trial)
        return trial

    def rank(options: Options) -> Rank:
        return rank_of(run(options, 0, [trial.point for trial in trials if trial.is_reached]))

    best = search(method.space, rank, extent.trials)[0]
    # Where no options reach the target with the first seed, no median of three would be much of a result.
    if any(trial.is_reached for trial in trials):
        for seed in range(1, extent.seeds):
            run(best, seed, [])
    return summary(task, method, trials)


def rank_of(trial: Trial) -> Rank:
    """Return how good a trial is: its bytes, then its batches, and how close those came that missed the target."""
    sign = 1 if learning_task(trial.task).metric == "loss" else -1
    return (trial.point.bytes, trial.point.batches, math.inf if trial.best is None else sign * trial.best)


def summary(task: str, method: Method, trials: Iterable[Trial]) -> Study | None:
    """Return what trials say of a method, however many there are yet; None without a trial of the first seed."""
    by_options: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        by_options.setdefault(options_text(trial.options), []).append(trial)
    settings = [_setting(of_options) for of_options in by_options.values() if of_options[0].seed == 0]
    settings.sort(key=lambda setting: setting.rank)
    return Study(task, method.name, method.family, method.is_compressed, settings) if settings else None


def _setting(trials: Sequence[Trial]) -> Setting:
    return Setting(
        trials[0].options,
        statistics.median(trial.point.batches for trial in trials),
        statistics.median(trial.point.bytes for trial in trials),
        statistics.median(trial.exchanges if trial.is_reached else math.inf for trial in trials),
        sum(trial.is_reached for trial in trials),
        len(trials),
        rank_of(trials[0]),
    )


def _line(trial: Trial) -> str:
    outcome = f"{trial.batches} batches, {trial.bytes / 1e3:.1f} kB: {trial.end}"
    best = "" if trial.is_reached or trial.best is None else f" (best {trial.best:.3g})"
    options = options_text(trial.options)
    return f"{trial.task:12} {trial.method:26} {options:50} seed {trial.seed}: {outcome}{best} in {trial.seconds:.0f} s"
