"""A study: one method on one task, tuned on the first seed and then run with all seeds."""

import math
import statistics
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.convergence.methods import METHODS, Family, Method, federated
from benchmarks.convergence.trials import (
    NotStoredError,
    Trial,
    TrialStore,
    best_value,
    device_seconds_per_batch,
    run_trial,
    values_to_try,
)

OURS = "EdgeNewton kfac"
DEFAULT = "EdgeNewton kfac, untuned"
DEFAULT_PART = 0.05
"""The default of `update_clip`, which is what ours is tuned by."""
BYTES_PER_VALUE = 4
MEASURED_BATCHES = 60


@dataclass(frozen=True)
class Study:
    """What is known of a method on a task."""

    task: str
    method: str
    family: Family
    tuned: str
    value: float
    trials: int
    """Trials that the tuning took."""
    batches: list[int | None]
    """Batches of each device to the target, for each seed; None where the budget was too small."""
    exchanges: float
    bytes_each_way: float
    device_s_per_batch: float
    curve: list[tuple[int, float]]
    """Of the first seed."""

    @property
    def median(self) -> float:
        """Median of the batches to the target; infinite if most seeds did not reach it."""
        return statistics.median(math.inf if batches is None else batches for batches in self.batches)

    @property
    def device_s(self) -> float:
        """Processor seconds of a device to the target."""
        return self.median * self.device_s_per_batch

    def seconds_on_link(self, mbit_s: float) -> float:
        """Seconds to the target where computing and exchanging take turns, and a link carries one way at a time."""
        return self.device_s + 2 * self.bytes_each_way * 8 / (mbit_s * 1e6)


@dataclass(frozen=True)
class Extent:
    """How much is run."""

    folder: Path
    """Where trials are kept."""
    seeds: int
    """Of the final runs."""
    budget: int
    """Batches after which a trial is given up."""
    is_stored: bool
    """Whether only what is kept counts, and nothing is run."""

    def store(self, task: str, method: Method) -> TrialStore:
        """Return the trials of a method on a task."""
        return TrialStore(self.folder / task / f"{method.name}.jsonl", is_complete=self.is_stored)


def study(extent: Extent, task: str, method: Method) -> Study:
    """Tune a method on a task, then run it with all seeds."""
    store = extent.store(task, method)
    tried: dict[float, Trial] = {}
    for value in values_to_try(method, tried):
        # What has not reached the target by then cannot be the best.
        limit = min([trial.batches for trial in tried.values() if trial.batches is not None], default=extent.budget)
        tried[value] = _trial(store, task, method, value, 0, limit)
    return evaluate(extent, task, method, best_value(tried), len(tried))


def evaluate(extent: Extent, task: str, method: Method, value: float, trials: int) -> Study:
    """Run all seeds with one value."""
    store = extent.store(task, method)
    runs = [_trial(store, task, method, value, seed, extent.budget) for seed in range(extent.seeds)]
    median = statistics.median(trial.cost for trial in runs)
    batches = MEASURED_BATCHES if math.isinf(median) else min(int(median), MEASURED_BATCHES)
    return Study(
        task,
        method.name,
        method.family,
        method.tuned,
        value,
        trials,
        [trial.batches for trial in runs],
        statistics.median(trial.exchanges for trial in runs),
        BYTES_PER_VALUE * statistics.median(trial.sent for trial in runs),
        device_seconds_per_batch(task, method, value, max(batches, method.local_steps)),
        runs[0].curve,
    )


def study_all(extent: Extent, task: str, name: str) -> list[Study]:
    """Study a method, and what depends on it: the untuned form of ours, FedAdam with FedAvg's best clients' rate.

    Nothing of a study that lacks trials is returned where only what is kept counts.
    """
    method = next(method for method in METHODS if method.name == name)
    studies: list[Study] = []
    with suppress(NotStoredError):
        studies.append(study(extent, task, method))
    if name == OURS:
        untuned = evaluate(extent, task, method, DEFAULT_PART, 0)
        studies.append(Study(**{**asdict(untuned), "method": DEFAULT}))
    if name.startswith("FedAvg") and studies:
        with suppress(NotStoredError):
            studies.append(study(extent, task, federated(method.local_steps, studies[0].value)))
    return studies


def _trial(store: TrialStore, task: str, method: Method, value: float, seed: int, budget: int) -> Trial:
    known = store.find(task, method.name, value, seed, budget)
    if known is not None:
        return known
    trial = run_trial(task, method, value, seed, budget)
    store.add(trial)
    outcome = f"{trial.batches} batches" if trial.batches else f"not within {budget} (best {trial.best:.3g})"
    print(f"{task:12} {method.name:34} {method.tuned} {value:<8g} seed {seed}: {outcome}", flush=True)
    return trial
