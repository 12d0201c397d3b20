"""One trial of the long benchmark: a whole training, with its curve, and its record on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.long.fleet_data import DEVICES, FleetBatches, FleetData, accuracy
from benchmarks.long.methods import METHODS, Options
from benchmarks.long.sgd_step import SgdStep, now
from benchmarks.long.tasks import long_task
from benchmarks.long.training import Training, Variant
from benchmarks.long.union_gradient import DivergedError
from benchmarks.shared.record_store import RecordStore, options_text
from edge_client.curvature.linalg import CurvatureError
from edge_client.exchange.errors import ExchangeError
from edge_client.tasks import Task
from edge_client.training.trainer import build_model

EVALUATE_EVERY = 20
_MEASURE_EVERY = 100
"""Batches between two steps of SGD that give the unit of processor time."""
Key = tuple[str, str, str, int, int]
End = Literal["completed", "diverged"]


class Request(NamedTuple):
    """A trial that is to be run, or has been."""

    task: str
    method: str
    options: Options
    seed: int
    batches: int
    """Of each device."""

    @property
    def key(self) -> Key:
        """What identifies it."""
        return self.task, self.method, options_text(self.options), self.seed, self.batches


class Point(NamedTuple):
    """Where a training stood at an evaluation."""

    batches: int
    plain: float | None
    """Accuracy of the last weights, if they were tried."""
    averaged: float | None
    """That of the average of the iterates."""
    device_s: float
    """Processor seconds of a device so far: its own batches, and every update."""
    average_s: float
    """Those of averaging, where the optimizer does not do it itself."""
    megabytes: float
    """That a device has sent so far; it has received as many."""

    def accuracy(self, variant: Variant) -> float | None:
        """Return the accuracy of one of the two."""
        return self.plain if variant == "plain" else self.averaged

    def seconds(self, variant: Variant) -> float:
        """Return what a device has spent on it."""
        return self.device_s + (self.average_s if variant == "averaged" else 0.0)


@dataclass(frozen=True)
class Trial:
    """How one training went."""

    task: str
    method: str
    options: Mapping[str, float]
    seed: int
    batches: int
    """Of each device, as planned."""
    end: End
    """The one thing that ends a trial early is a loss that is not finite."""
    curve: Sequence[Sequence[Any]]
    """A `Point` for each evaluation."""
    sgd_step_s: float
    """Processor seconds of a device for a step of SGD, measured in the same process at the same time."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What the optimizer would tell others of itself, of ours."""

    @property
    def request(self) -> Request:
        """What it answers."""
        return Request(self.task, self.method, self.options, self.seed, self.batches)

    @property
    def key(self) -> Key:
        """What identifies it."""
        return self.request.key

    @property
    def points(self) -> list[Point]:
        """The evaluations."""
        return [Point(*values) for values in self.curve]


class TrialStore(RecordStore[Trial]):
    """The trials of a method on a task, on disk."""

    def __init__(self, folder: Path, task: str, method: str) -> None:
        super().__init__(folder / task / f"{method}.jsonl", Trial)


def run_trial(request: Request, device_name: str = "cpu") -> Trial:
    """Train from the beginning to the end.

    Raises:
        TaskError: the task cannot be had here.

    """
    torch.set_num_threads(1)
    device = torch.device(device_name)
    kind = long_task(request.task)
    task = kind.load()
    data = FleetData.of(task, kind.partition)
    batches = FleetBatches(data, request.seed, device)
    model = build_model(task, request.seed).to(device).train()
    unit = SgdStep(build_model(task, request.seed).to(device).train(), task, device)
    torch.manual_seed(request.seed)  # for whatever is drawn in a forward
    training = METHODS[request.method].start(model, task, request.options, request.batches, device)
    curve: list[Point] = []
    device_s = average_s = sent = 0.0
    end: End = "completed"
    for step in range(request.batches):
        of_devices = batches.step(step)
        if step % _MEASURE_EVERY == 0:
            unit.measure(of_devices)
        try:
            began = now(device)
            training.add_gradient(of_devices)
            computed = now(device)
            training.step()
            updated = now(device)
        except (DivergedError, CurvatureError, ExchangeError):
            end = "diverged"
            break
        training.follow()
        average_s += now(device) - updated
        device_s += (computed - began) / DEVICES + updated - computed
        sent += training.bytes_of_step
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == request.batches:
            found = _accuracies(training, task, data, device)
            costs = round(device_s, 4), round(average_s, 4), round(sent / 1e6, 4)
            curve.append(Point(step + 1, found.get("plain"), found.get("averaged"), *costs))
    return Trial(**request._asdict(), end=end, curve=curve, sgd_step_s=unit.seconds, settings=dict(training.settings))


def _accuracies(training: Training, task: Task, data: FleetData, device: torch.device) -> dict[Variant, float]:
    return {variant: round(accuracy(model, task, data.test, device), 5) for variant, model in training.evaluated()}
