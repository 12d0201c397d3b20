"""One trial of the convergence benchmark, its record on disk, and the search for the best value of what is tuned."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from benchmarks.convergence.learning_tasks import LEARNING_TASKS, LearningTask
from benchmarks.convergence.methods import Batch, Method, Run
from edge_client.training.batches import BatchOrder
from edge_client.training.trainer import device_seed

BATCH_SIZE = 32


@dataclass(frozen=True)
class Trial:
    """How one training went."""

    task: str
    method: str
    value: float
    """Of what is tuned."""
    seed: int
    budget: int
    """Batches after which the trial was given up."""
    batches: int | None
    """Batches of each device when the target was reached; None if it was not."""
    exchanges: int
    sent: int
    """Numbers that a device sent until then; it received as many."""
    best: float
    """The best value of the metric."""
    curve: list[tuple[int, float]]
    """Batches of each device, and the metric."""

    @property
    def cost(self) -> float:
        """Batches to the target, infinity if it was not reached."""
        return math.inf if self.batches is None else self.batches


class NotStoredError(LookupError):
    """A trial was asked for that has not been run."""


class TrialStore:
    """Trials on disk, one a line, so that a benchmark goes on where it was interrupted.

    Args:
        path: of the file.
        is_complete: whether a trial that is not in it is an error, instead of one to be run.

    """

    def __init__(self, path: Path, *, is_complete: bool = False) -> None:
        self._path = path
        self._is_complete = is_complete
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[tuple[str, str, float, int], Trial] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                self._keep(Trial(**json.loads(line)))
            except (ValueError, TypeError):
                continue  # the line that was being written when the benchmark was killed

    def find(self, task: str, method: str, value: float, seed: int, budget: int) -> Trial | None:
        """Return a trial that answers the question, if there is one.

        Raises:
            NotStoredError: there is none, and the store counts as complete.

        """
        trial = self._known.get((task, method, value, seed))
        is_enough = trial is not None and (trial.batches is not None or trial.budget >= budget)
        if self._is_complete and not is_enough:
            raise NotStoredError(f"{task}, {method}, {value:g}, seed {seed} has not been run")
        return trial if is_enough else None

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
        self._keep(trial)

    def _keep(self, trial: Trial) -> None:
        self._known[trial.task, trial.method, trial.value, trial.seed] = trial


@cache
def learning_task(name: str) -> LearningTask:
    """Return a task; its data are loaded once."""
    return LEARNING_TASKS[name]()


class DeviceBatches:
    """The batches of all devices, in an order that depends on the seed."""

    def __init__(self, task: LearningTask, seed: int, devices: int | None = None) -> None:
        self._devices = task.devices[:devices]
        self._orders = [
            BatchOrder(len(samples), BATCH_SIZE, device_seed(seed, index))
            for index, samples in enumerate(self._devices)
        ]

    def step(self, number: int) -> list[Batch]:
        """Return each device's batch of a step."""
        chosen = [torch.from_numpy(order.indices(number)) for order in self._orders]
        return [(s.inputs[indices], s.targets[indices]) for s, indices in zip(self._devices, chosen, strict=True)]


def begin(task: LearningTask, method: Method, value: float, seed: int) -> Run:
    """Return a run with the initial weights of a seed, the same for all methods."""
    torch.manual_seed(seed)
    return method.start(task.build(), task, value)


def run_trial(task_name: str, method: Method, value: float, seed: int, budget: int) -> Trial:
    """Train until the target or the budget is reached."""
    torch.set_num_threads(1)
    task = learning_task(task_name)
    run = begin(task, method, value, seed)
    data = DeviceBatches(task, seed)
    parameters = sum(p.numel() for p in run.model.parameters())
    curve: list[tuple[int, float]] = []
    batches, exchanges, sent = 0, 0, 0
    reached = False
    while not reached and batches < budget:
        run.round([data.step(batches + step) for step in range(method.local_steps)])
        batches += method.local_steps
        exchanges += 1
        sent += run.values_exchanged(parameters)
        if method.local_steps > 1 or batches % task.evaluate_every == 0:
            curve.append((batches, task.evaluate(run.model)))
            if not math.isfinite(curve[-1][1]):
                break
            reached = task.is_reached(curve[-1][1])
    finite = [metric for _, metric in curve if math.isfinite(metric)] or [math.nan]
    best = min(finite) if task.metric == "loss" else max(finite)
    return Trial(
        task_name, method.name, value, seed, budget, batches if reached else None, exchanges, sent, best, curve
    )


def device_seconds_per_batch(task_name: str, method: Method, value: float, batches: int) -> float:
    """Return the processor time that one device spends on a batch: its own samples, and the optimizer's work."""
    torch.set_num_threads(1)
    task = learning_task(task_name)
    run = begin(task, method, value, seed=0)
    data = DeviceBatches(task, seed=0, devices=1)
    rounds = max(1, batches // method.local_steps)
    prepared = [
        [data.step(number * method.local_steps + s) for s in range(method.local_steps)] for number in range(rounds)
    ]
    began = time.process_time()
    for of_round in prepared:
        run.round(of_round)
    return (time.process_time() - began) / (rounds * method.local_steps)


def values_to_try(method: Method, best_of: dict[float, Trial], extensions: int = 3) -> Iterator[float]:
    """Yield the grid, then values beyond it for as long as the best lies at an edge."""
    yield from method.grid
    if len(method.grid) == 1:
        return
    lowest, highest = min(method.grid), max(method.grid)
    ratio = method.grid[1] / method.grid[0]
    for _ in range(extensions):
        best = best_value(best_of)
        if best == lowest:
            lowest = float(f"{lowest / ratio:.3g}")
            yield lowest
        elif best == highest:
            highest = float(f"{highest * ratio:.3g}")
            yield highest
        else:
            return


def best_value(trials: dict[float, Trial]) -> float:
    """Return the value that reached the target first, or came closest to it."""
    sign = 1 if learning_task(next(iter(trials.values())).task).metric == "loss" else -1
    return min(trials, key=lambda value: (trials[value].cost, sign * trials[value].best))
