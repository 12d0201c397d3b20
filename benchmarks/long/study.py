"""Which trials are wanted, and in what order: whatever has been run when it is stopped can be compared."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.long.curves import final_accuracy
from benchmarks.long.methods import DEFAULT, METHODS, Method, Options
from benchmarks.long.tasks import long_task
from benchmarks.long.trials import Request, Trial, TrialStore
from benchmarks.shared.record_store import options_text

TUNING_SHARE = 0.2
"""A trial of the tuning has so many times the batches of a whole one, and its own schedule."""
TUNING_TRIALS = 4
"""Of every method that is tuned, on seed 0: its grid, and one more where that is best."""
_PROMISING = 2
"""So many baselines of a task, the best so far, are run in full, and with all seeds, before the others."""


@dataclass(frozen=True)
class Extent:
    """How much is run."""

    folder: Path
    """Where trials are kept."""
    tasks: Sequence[str]
    methods: Sequence[str]
    seeds: int
    batches: int | None = None
    """Of each device in a whole trial, if not what the task has."""

    def batches_of(self, task: str) -> int:
        """Return the batches of a whole trial."""
        return self.batches or long_task(task).batches

    def tuning_batches_of(self, task: str) -> int:
        """Return the batches of a trial of the tuning."""
        return max(1, round(TUNING_SHARE * self.batches_of(task)))


class Wanted(NamedTuple):
    """A trial that is still to be run; the smallest comes first."""

    phase: int
    method: int
    seed: int
    task: int
    request: Request


class Trials:
    """All trials of a benchmark, of each method those that were run with its settings of today."""

    def __init__(self, extent: Extent) -> None:
        self._stores = {
            (task, method): TrialStore(extent.folder, task, method)
            for task in extent.tasks
            for method in extent.methods
        }
        self._settings: dict[tuple[str, str], dict[str, str]] = {}

    def all(self, task: str, method: str) -> list[Trial]:
        """Return those of a method on a task, by seed."""
        current = [trial for trial in self._stores[task, method].all() if dict(trial.settings) == self._today(trial)]
        return sorted(current, key=lambda trial: trial.seed)

    def has(self, request: Request) -> bool:
        """Whether a trial has been run."""
        return any(trial.key == request.key for trial in self.all(request.task, request.method))

    def add(self, trial: Trial) -> None:
        """Keep one."""
        self._stores[trial.task, trial.method].add(trial)

    def _today(self, trial: Trial) -> dict[str, str]:
        key = trial.method, options_text(trial.options)
        if key not in self._settings:
            self._settings[key] = dict(METHODS[trial.method].settings(trial.options))
        return self._settings[key]


def wanted(extent: Extent, trials: Trials) -> list[Request]:
    """Return what is to be run that the trials so far ask for, the most urgent first.

    First the default and the tuning of the baselines, then the promising baselines in full, then all others, each with
    the first seed; then the other seeds in the same order.
    """
    found = [w for number, task in enumerate(extent.tasks) for w in _Task(extent, trials, task, number).wanted()]
    return [w.request for w in sorted(found, key=lambda w: w[:4]) if not trials.has(w.request)]


def given(extent: Extent, options: Options) -> list[Request]:
    """Return whole trials of all methods and tasks with given options."""
    return [
        Request(task, method, options, seed, extent.batches_of(task))
        for seed in range(extent.seeds)
        for method in extent.methods
        for task in extent.tasks
    ]


def tuned_value(scores: Mapping[float, float]) -> float:
    """Return the best value of what is tuned."""
    return max(scores, key=lambda value: scores[value])


def values_to_try(method: Method, scores: Mapping[float, float]) -> list[float]:
    """Return the values of what is tuned that are to be tried next: the grid, then one more.

    That lies beyond the grid where its edge is the best, and else between the best and the better of its neighbours.
    """
    missing = [value for value in method.grid if value not in scores]
    if missing or len(scores) >= TUNING_TRIALS:
        return missing
    best = tuned_value(scores)
    at, factor = method.grid.index(best), method.grid[1] / method.grid[0]
    if at == 0:
        further = best / factor
    elif at == len(method.grid) - 1:
        further = best * factor
    else:
        further = math.sqrt(best * max(method.grid[at - 1], method.grid[at + 1], key=lambda value: scores[value]))
    return [float(f"{further:.2g}")]


class _Task:
    """What is wanted of one task."""

    def __init__(self, extent: Extent, trials: Trials, task: str, number: int) -> None:
        self._extent = extent
        self._task = task
        self._number = number
        self._methods = [METHODS[name] for name in extent.methods]
        self._of = {method.name: trials.all(task, method.name) for method in self._methods}
        self._batches = extent.batches_of(task)
        self._tuning_batches = extent.tuning_batches_of(task)

    def wanted(self) -> Iterator[Wanted]:
        """Yield all that can be said today, whether or not it has been run."""
        baselines = [method for method in self._methods if not method.is_ours]
        for method in self._methods:
            if method.tuned:
                yield from self._tuning(method, phase=4 if method.is_ours else 0)
        promising = sorted(baselines, key=self._promise, reverse=True)[:_PROMISING]
        # Which are promising is known when all are tuned.
        is_tuned = all(self._options(method) is not None for method in baselines)
        for method in self._methods:
            is_first = is_tuned and method in promising
            first, others = (1, 3) if is_first else (4, 5) if method.family == "ours, tuned" else (2, 5)
            if method.name == DEFAULT:
                first, others = 0, 3
            options = self._options(method)
            if options is not None and (is_tuned or method.is_ours):
                for seed in range(self._extent.seeds):
                    yield self._want(others if seed else first, method, options, seed, self._batches)

    def _tuning(self, method: Method, phase: int) -> Iterator[Wanted]:
        for value in values_to_try(method, self._scores(method)):
            yield self._want(phase, method, {method.tuned: value}, 0, self._tuning_batches)

    def _want(self, phase: int, method: Method, options: Mapping[str, float], seed: int, batches: int) -> Wanted:
        request = Request(self._task, method.name, options, seed, batches)
        return Wanted(phase, self._methods.index(method), seed, self._number, request)

    def _scores(self, method: Method) -> dict[float, float]:
        """Return what the tuning has found so far."""
        return {
            trial.options[method.tuned]: final_accuracy(trial)
            for trial in self._of[method.name]
            if trial.batches == self._tuning_batches and trial.seed == 0 and method.tuned in trial.options
        }

    def _options(self, method: Method) -> dict[str, float] | None:
        """Return with what a method is run in full; None while that is not known."""
        if not method.tuned:
            return {}
        scores = self._scores(method)
        return {method.tuned: tuned_value(scores)} if len(scores) >= TUNING_TRIALS else None

    def _promise(self, method: Method) -> float:
        """Return the accuracy of a whole trial or, where there is none, of the tuning."""
        whole = self._trials(method, lambda trial: trial.batches == self._batches and trial.seed == 0)
        return max((final_accuracy(trial) for trial in whole or self._of[method.name]), default=0.0)

    def _trials(self, method: Method, is_meant: Callable[[Trial], bool]) -> list[Trial]:
        return [trial for trial in self._of[method.name] if is_meant(trial)]
