"""One trial of the frontier benchmark, and its record on disk."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.convergence.trials import learning_task
from benchmarks.frontier.front import Point
from benchmarks.frontier.interface import DivergedError, Method, Options
from benchmarks.shared.record_store import RecordStore, options_text
from edge_client.curvature.linalg import CurvatureError
from edge_client.exchange.errors import ExchangeError

End = Literal["reached", "beaten", "budget", "diverged"]
Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Trial:
    """How one training went, until it ended."""

    task: str
    method: str
    options: Mapping[str, float]
    seed: int
    budget: int
    """Batches of each device after which it would have been given up."""
    end: End
    """"beaten": it had taken more batches and more bytes than another trial had to the target."""
    batches: int
    """Of each device."""
    bytes: float
    """Of each device, each way."""
    exchanges: int
    best: float | None
    """The best value of the metric, if it was ever finite."""
    seconds: float

    @property
    def is_reached(self) -> bool:
        """Whether it reached the target."""
        return self.end == "reached"

    @property
    def point(self) -> Point:
        """What it took to the target; infinite if it did not reach it."""
        return Point(self.batches, self.bytes) if self.is_reached else Point(math.inf, math.inf)

    @property
    def key(self) -> Key:
        """What identifies it."""
        return self.task, self.method, options_text(self.options), self.seed


class TrialStore(RecordStore[Trial]):
    """Trials on disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Trial)

    def find(self, key: Key, budget: int, beaten_by: Iterable[Point]) -> Trial | None:
        """Return a trial that would not go on any further today, if there is one."""
        trial = self.get(key)
        if trial is None:
            return None
        is_over = trial.is_reached or trial.end == "diverged" or trial.batches >= budget
        return trial if is_over or is_beaten(Point(trial.batches, trial.bytes), beaten_by) else None


def is_beaten(point: Point, others: Iterable[Point]) -> bool:
    """Whether another has taken no more of either, so that whatever takes more than this cannot be on the front."""
    return any(other.batches <= point.batches and other.bytes <= point.bytes for other in others)


def run_trial(
    task_name: str, method: Method, options: Options, seed: int, budget: int, beaten_by: Sequence[Point] = ()
) -> Trial:
    """Train until the target or the budget is reached, or others have been quicker and cheaper."""
    torch.set_num_threads(1)
    task = learning_task(task_name)
    began = time.process_time()
    torch.manual_seed(seed)  # the same initial weights for all methods
    run = method.start(task.build(), task, options, seed)
    batches, exchanged, exchanges, evaluated = 0, 0.0, 0, 0
    metrics: list[float] = []
    end: End = "budget"
    while batches < budget:
        try:
            cost = run.round()
        except (DivergedError, CurvatureError, ExchangeError):
            end = "diverged"
            break
        batches += cost.batches
        exchanged += cost.each_way
        exchanges += 1
        if batches - evaluated >= task.evaluate_every:
            evaluated = batches
            metrics.append(task.evaluate(run.model))
            if not math.isfinite(metrics[-1]):
                end = "diverged"
                break
            if task.is_reached(metrics[-1]):
                end = "reached"
                break
        if is_beaten(Point(batches, exchanged), beaten_by):
            end = "beaten"
            break
    finite = [metric for metric in metrics if math.isfinite(metric)]
    best = None if not finite else min(finite) if task.metric == "loss" else max(finite)
    seconds = round(time.process_time() - began, 2)
    return Trial(task_name, method.name, dict(options), seed, budget, end, batches, exchanged, exchanges, best, seconds)
