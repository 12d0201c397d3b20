"""Accuracy under a privacy budget, ours against DP-FedAvg and DP-SGD: `python -m benchmarks.privacy.dp`.

All three clip each device's contribution, add the same noise by the same accountant, and are given their options by the
same kind of search: the best mean over the seeds counts. The devices are simulated, and the noise
of a sum is drawn at once instead of share by share, which is the same distribution but for less than 1e-1000.

- ours: each device takes steps of `NewtonOptimizer` with its own curvature, as `PrivateLocalSteps` lets it.
- DP-FedAvg (McMahan et al. 2018, https://arxiv.org/abs/1710.06963), with a fixed clip norm as in Flower's mod: local
  steps of SGD.
- DP-SGD with a device as the unit: one gradient of all of a device's samples in each exchange.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shared.results import save_results
from edge_client import NewtonOptimizer, Refresh, TrustRegion
from edge_client.privacy import ClippedNoise, PrivacyBudget
from edge_client.privacy.discrete_gaussian import discrete_gaussian
from edge_client.tasks import Partition, Samples, load_task

TASKS = ("digits", "motion")
DEVICES = (100, 8)
EPSILONS = (2.0, 4.0, 8.0)
DELTA = 1e-5
BATCH = 32
SEEDS = (0, 1, 2)
_TRIALS = Path("runs/privacy-dp.jsonl")


@dataclass(frozen=True)
class Options:
    """Of one method."""

    method: str
    exchanges: int
    local_steps: int
    clip_norm: float
    lr: float
    """Of the local steps."""
    outer_lr: float = 1.0
    momentum: float = 0.0
    """On the noised means, as in Nesterov's method."""


GRID: dict[str, list[Options]] = {
    "ours": [Options("ours", r, 1, 0.1, 0.1, o, 0.9) for r, o in ((12, 1.0), (25, 0.5), (25, 1.0))],
    "dp-fedavg": [
        Options("dp-fedavg", r, 10, c, 0.1, o, m)
        for (r, c), (o, m) in product(((6, 1.0), (12, 0.3), (12, 1.0)), ((1.0, 0.0), (0.5, 0.9)))
    ],
    "dp-sgd": [Options("dp-sgd", r, 1, 1.0, 1.0, o, 0.9) for r, o in product((25, 50), (0.05, 0.1, 0.2))],
}
DAMPING = 1.0
"""Of ours, in units of the mean curvature: a device's few samples tell the small eigenvalues badly."""


def model_of(task: str) -> nn.Module:
    """Return a model with few parameters, since noise is added to each: 2,410 for digits, 590 for motion."""
    if task == "digits":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    return nn.Sequential(
        nn.Conv2d(6, 8, (1, 9), stride=(1, 4)), nn.ReLU(), nn.AvgPool2d((1, 8)), nn.Flatten(), nn.LazyLinear(6)
    )


def built(task: str, samples: Samples) -> nn.Module:
    """Return a model whose layers know the shape of their inputs."""
    model = model_of(task)
    with torch.no_grad():
        model(samples.inputs[:1])
    return model


@cache
def shares(task: str, devices: int, seed: int) -> tuple[list[Samples], Samples]:
    """Return each device's training samples, spread alike, and all held-out ones."""
    of = load_task(task)
    trained = [of.train_data(Partition(index, devices, "iid", seed=seed)) for index in range(devices)]
    held_out = of.test_data(Partition(0, 1, "iid", seed=seed))
    assert all(isinstance(share, Samples) for share in [*trained, held_out])
    return trained, held_out  # type: ignore[return-value]


class NewtonFleet:
    """Simulated devices, each with a model and an optimizer, whose curvature it keeps."""

    def __init__(self, shares: Sequence[Samples], options: Options, task: str, seed: int) -> None:
        self._shares, self._options = shares, options
        self._generator = torch.Generator().manual_seed(seed)
        refresh = Refresh(warmup_steps=1, factor_every=100, inverse_every=100, growth=1.5)
        trust = TrustRegion(damping=DAMPING)
        self._models = [built(task, shares[0]) for _ in shares]
        self._optimizers = [
            NewtonOptimizer(model, lr=options.lr, momentum=0.0, trust=trust, refresh=refresh, averaging=None)
            for model in self._models
        ]

    def moves_from(self, anchor: Tensor) -> Tensor:
        """Return what the local steps of each device move the parameters by, `[devices, parameters]`."""
        return torch.stack([self._move(device, anchor) for device in range(len(self._shares))])

    def _move(self, device: int, anchor: Tensor) -> Tensor:
        model, optimizer, share = self._models[device], self._optimizers[device], self._shares[device]
        put(model, anchor)
        for _ in range(self._options.local_steps):
            chosen = torch.randperm(len(share), generator=self._generator)[:BATCH]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(share.inputs[chosen]), share.targets[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return flat(model) - anchor


class SgdFleet:
    """Simulated devices that take steps of SGD, all at once."""

    def __init__(self, shares: Sequence[Samples], options: Options, task: str, seed: int) -> None:
        self._options = options
        self._generator = torch.Generator().manual_seed(seed)
        self._counts = [len(share) for share in shares]
        self._inputs = nn.utils.rnn.pad_sequence([share.inputs for share in shares], batch_first=True)
        self._targets = nn.utils.rnn.pad_sequence([share.targets for share in shares], batch_first=True)
        model = built(task, shares[0])
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

        def loss(vector: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            pieces = torch.split(vector, [shape.numel() for shape in shapes.values()])
            parameters = {name: piece.view(shapes[name]) for name, piece in zip(shapes, pieces, strict=True)}
            outputs = torch.func.functional_call(model, parameters, (inputs,))
            return weights @ nn.functional.cross_entropy(outputs, targets, reduction="none")

        self._gradients = torch.func.vmap(torch.func.grad(loss))

    def moves_from(self, anchor: Tensor) -> Tensor:
        """Return what the local steps of each device move the parameters by, `[devices, parameters]`."""
        moved = anchor.repeat(len(self._counts), 1)
        most = max(self._counts)
        size = most if self._options.method == "dp-sgd" else min(BATCH, most)
        rows = torch.arange(len(self._counts)).unsqueeze(1)
        for _ in range(self._options.local_steps):
            chosen = torch.zeros(len(self._counts), size, dtype=torch.long)
            weights = torch.zeros(len(self._counts), size)
            for device, count in enumerate(self._counts):
                drawn = torch.randperm(count, generator=self._generator)[:size]
                chosen[device, : len(drawn)], weights[device, : len(drawn)] = drawn, 1 / len(drawn)
            batch = self._inputs[rows, chosen], self._targets[rows, chosen], weights
            moved -= self._options.lr * self._gradients(moved, *batch)
        return moved - anchor


def trial(task: str, devices: int, epsilon: float, options: Options, seed: int) -> float:
    """Return the accuracy on the held-out samples."""
    trained, held_out = shares(task, devices, seed)
    fleet = (NewtonFleet if options.method == "ours" else SgdFleet)(trained, options, task, seed)
    torch.manual_seed(seed)
    model = built(task, held_out)
    anchor = flat(model)
    budget = PrivacyBudget(epsilon, DELTA, options.clip_norm, devices, options.exchanges)
    random_bytes = np.random.default_rng((seed, 7)).bytes
    noise = ClippedNoise(budget, len(anchor), random_bytes)
    together = round(noise.deviation * math.sqrt(devices))
    velocity = torch.zeros_like(anchor)
    for _ in range(options.exchanges):
        total = discrete_gaussian(together, len(anchor), random_bytes)
        for move in fleet.moves_from(anchor):
            total = total + noise.clipped(move.numpy())
        mean = torch.from_numpy(total * (noise.grid / devices)).float()
        velocity = options.momentum * velocity + mean
        anchor = anchor + options.outer_lr * (mean + options.momentum * velocity)  # as `OuterStep` does
    put(model, anchor)
    with torch.no_grad():
        right = model(held_out.inputs).argmax(1) == held_out.targets
    return float(right.float().mean())


def flat(model: nn.Module) -> Tensor:
    """Return a model's parameters, one after the other."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@torch.no_grad()
def put(model: nn.Module, values: Tensor) -> None:
    """Give a model parameters that `flat` gave."""
    torch.nn.utils.vector_to_parameters(values.clone(), model.parameters())


def cases() -> Iterator[tuple[str, int, float, Options, int]]:
    """Yield what is to be measured, the first seed of all first."""
    for seed, devices, epsilon, task in product(SEEDS, DEVICES, (4.0, 8.0, 2.0), TASKS):
        for options in [option for grid in GRID.values() for option in grid]:
            yield task, devices, epsilon, options, seed


def summary(trials: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the headline, and for each case the best options of each method by the mean over the seeds it has."""
    rows = []
    for task, devices, epsilon in product(TASKS, DEVICES, EPSILONS):
        row: dict[str, Any] = {"task": task, "devices": devices, "epsilon": epsilon}
        for method, grid in GRID.items():
            means = []
            for options in grid:
                case = {"task": task, "devices": devices, "epsilon": epsilon, "options": asdict(options)}
                found = [t["accuracy"] for t in trials if case.items() <= t.items()]
                if found:
                    means.append((statistics.mean(found), len(found), asdict(options)))
            if len(means) < len(grid):
                break
            accuracy, seeds, best = max(means, key=lambda mean: mean[0])
            row[method] = {"accuracy": accuracy, "seeds": seeds, "options": best}
        else:
            others = max(row[method]["accuracy"] for method in GRID if method != "ours")
            row["gain_points"] = 100 * (row["ours"]["accuracy"] - others)
            rows.append(row)
    gains = [row["gain_points"] for row in rows]
    return {"dp_accuracy_gain_median": statistics.median(gains) if gains else None}, rows


def main() -> None:
    """Measure what is not measured yet, for as long as is given, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so long; the next run goes on")
    parser.add_argument("--part", default="0/1", help="measure only every n-th case, as 0/2 and 1/2 side by side")
    parser.add_argument("--report", action="store_true", help="write the results of what was measured, and end")
    arguments = parser.parse_args()
    number, parts = map(int, arguments.part.split("/"))
    torch.set_num_threads(1)
    _TRIALS.parent.mkdir(exist_ok=True)
    before = _TRIALS.read_text().splitlines() if _TRIALS.exists() else []
    known = {line.rpartition(', "accuracy"')[0] for line in before}
    until = time.monotonic() + 60 * arguments.minutes
    for index, (task, devices, epsilon, options, seed) in enumerate(cases()):
        if arguments.report or time.monotonic() > until:
            break
        case = {"task": task, "devices": devices, "epsilon": epsilon, "seed": seed, "options": asdict(options)}
        if index % parts != number or json.dumps(case).removesuffix("}") in known:
            continue
        accuracy = trial(task, devices, epsilon, options, seed)
        with _TRIALS.open("a") as file:
            file.write(json.dumps({**case, "accuracy": accuracy}) + os.linesep)
        print(f"{task}, {devices} devices, epsilon {epsilon:g}, {options}, seed {seed}: {accuracy:.3f}", flush=True)
    if arguments.report:
        headline, rows = summary([json.loads(line) for line in _TRIALS.read_text().splitlines()])
        print(save_results("privacy-dp", headline, {"delta": DELTA, "cases": rows}))


if __name__ == "__main__":
    main()
