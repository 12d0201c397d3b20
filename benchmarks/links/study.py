"""A cell: one task on some links, ours and the baselines that are promising there, with all seeds."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.convergence.trials import learning_task
from benchmarks.links.candidates import promising, stored_candidates
from benchmarks.links.configuration import OURS, RECIPES, Configuration
from benchmarks.links.link import LINKS, file_name
from benchmarks.links.run import Run, RunStore, fastest, key_of
from benchmarks.links.training import train

_TIMES_THE_FASTEST = 5
_LEAST_LIMIT_S = 20.0


@dataclass(frozen=True)
class Extent:
    """How much is run."""

    folder: Path
    """Where runs are kept."""
    trials: Path
    """Where the frontier benchmark keeps its trials."""
    baselines: int
    """Configurations of baselines in each cell."""
    seeds: int
    limit_s: float
    """Seconds after which a run is given up, however slow all others were."""
    budget_factor: float = 2.0
    """A run ends after so many times the batches that the task grants in the convergence benchmark."""

    def store(self, task: str, links: str) -> RunStore:
        """Return the runs of a cell."""
        return RunStore(self.folder / task / f"{file_name(links)}.jsonl")

    def budget(self, task: str) -> int:
        """Return the batches of each device after which a run ends."""
        return math.ceil(self.budget_factor * learning_task(task).budget)


def contestants(extent: Extent, task: str, links: str) -> list[Configuration]:
    """Return what is run in a cell."""
    found = promising(stored_candidates(task, extent.trials), LINKS[links], extent.baselines)
    return [OURS, *(candidate.configuration for candidate in found)]


def limit(so_far: list[Run], most_s: float) -> float:
    """Return the seconds after which a run is given up: several times what the fastest so far took."""
    return min(most_s, max(_LEAST_LIMIT_S, _TIMES_THE_FASTEST * fastest(so_far)))


def run_cell(extent: Extent, task: str, links: str) -> Iterator[Run]:
    """Run what has not been run; seed by seed, so that whatever changes on the machine meets all methods."""
    store = extent.store(task, links)
    so_far: list[Run] = []
    for seed in range(extent.seeds):
        for what in contestants(extent, task, links):
            run = store.find(key_of(task, links, what, seed))
            if run is None:
                run = train(task, links, what, seed, extent.budget(task), limit(so_far, extent.limit_s))
                store.add(run)
                yield run
            so_far.append(run)


def stored_runs(extent: Extent, task: str, links: str) -> list[Run]:
    """Return what has been run in a cell so far, but for methods that are no more."""
    runs = extent.store(task, links).all()
    return [run for run in runs if run.method == OURS.method or run.method in RECIPES]
