"""Accuracy under a privacy budget, ours against DP-FedAvg and DP-SGD: `python -m benchmarks.privacy.dp`.

All clip what a unit contributes, add the same noise by the same accountant, average their iterates alike, and are given
their options by the same kind of search: so many draws are tried with one seed, the best few with another, and the best
is run with seeds that chose nothing. The devices are simulated.

- ours: `PrivateGradients`, the product's own plan and optimizer.
- DP-SGD: one gradient of all of a device's samples in each exchange (of each of its samples, clipped by itself, where
  the unit is a sample), with momentum.
- DP-FedAvg (McMahan et al. 2018, https://arxiv.org/abs/1710.06963), with a fixed clip norm as in Flower's mod: local
  steps of SGD; its unit is a device.
"""

import argparse
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.privacy.dp_fleets import DELTA, Case, Options, first_order, ours
from benchmarks.shared.results import save_results
from edge_client.privacy import Unit

EPSILONS = (2.0, 4.0, 8.0)
TASKS = ("digits", "motion")
FLEETS: tuple[tuple[int, Unit], ...] = ((100, "device"), (8, "device"), (8, "sample"))
CASES = [Case(task, devices, epsilon, unit) for (devices, unit), task, epsilon in product(FLEETS, TASKS, EPSILONS)]
DRAWS = 12
FINALISTS = 3
CHOOSING_SEEDS = (0, 1)
SEEDS = (2, 3, 4)
_TRIALS = Path("runs/privacy-dp")


def _drawn_newton(rng: random.Random) -> Options:
    return Options(
        exchanges=rng.choice([12, 25, 50]),
        clip_norm=rng.choice([0.3, 0.6]),
        lr=10 ** rng.uniform(-1.3, 0.5),
        momentum=rng.choice([0.0, 0.5]),
        averaging=rng.choice([0.0, 0.8, 0.9]),
        damping=10 ** rng.uniform(-1.3, 0.3),
        kl_clip=rng.choice([0.03, 0.1, 0.3]),
        shrink_after=rng.choice([50.0, math.inf]),
    )


def _drawn_first_order(rng: random.Random, *, is_local: bool) -> Options:
    momentum, clip_norm = rng.choice([0.0, 0.5, 0.9]), rng.choice([0.3, 0.6])
    reach = 10 ** rng.uniform(-1.5, 0.3)
    return Options(
        exchanges=rng.choice([6, 12, 25, 50] if is_local else [12, 25, 50, 100, 200]),
        clip_norm=clip_norm,
        lr=reach * (1 - momentum) / clip_norm,  # what a step with a clipped mean is long in the end
        momentum=momentum,
        averaging=rng.choice([0.0, 0.8, 0.9]),
        local_steps=rng.choice([5, 10]) if is_local else 1,
        local_lr=rng.choice([0.1, 0.3]),
    )


METHODS: Mapping[str, tuple[Callable[[random.Random], Options], Callable[[Case, Options, int], float]]] = {
    "ours": (_drawn_newton, ours),
    "dp-sgd": (partial(_drawn_first_order, is_local=False), first_order),
    "dp-fedavg": (partial(_drawn_first_order, is_local=True), first_order),
}


def methods_of(case: Case) -> list[str]:
    """Return the methods that there are for a case."""
    return [method for method in METHODS if method != "dp-fedavg" or case.unit == "device"]


class Trials:
    """What was measured, kept in files, so that the next run goes on.

    Args:
        part: of the trials; each part writes a file of its own.

    """

    def __init__(self, part: str) -> None:
        _TRIALS.mkdir(parents=True, exist_ok=True)
        self._path = _TRIALS / f"{part}.jsonl"
        rows = [json.loads(line) for path in _TRIALS.glob("*.jsonl") for line in path.read_text().splitlines()]
        self._known = {json.dumps(row["of"]): row["accuracy"] for row in rows}

    def accuracy(self, case: Case, method: str, options: Options, seed: int, *, measures: bool = True) -> float | None:
        """Return the accuracy of a trial; None if it has not been measured, and is not to be."""
        of = {"case": asdict(case), "method": method, "options": asdict(options), "seed": seed}
        key = json.dumps(of)
        if key not in self._known and measures:
            self._known[key] = METHODS[method][1](case, options, seed)
            with self._path.open("a") as file:
                file.write(json.dumps({"of": of, "accuracy": self._known[key]}) + os.linesep)
        return self._known.get(key)


def measured(trials: Trials, case: Case, method: str, *, measures: bool) -> dict[str, Any] | None:
    """Return a method's accuracy with the best of its options, or None if trials are missing."""
    rng = random.Random(method)  # the same draws in each case
    draws = [METHODS[method][0](rng) for _ in range(DRAWS)]
    scores: dict[int, list[float]] = {at: [] for at in range(DRAWS)}
    for chosen, seed in zip((range(DRAWS), None), CHOOSING_SEEDS, strict=True):
        best = sorted(scores, key=lambda at: -statistics.mean(scores[at]))[:FINALISTS] if chosen is None else chosen
        for at in best:
            accuracy = trials.accuracy(case, method, draws[at], seed, measures=measures)
            if accuracy is None:
                return None
            scores[at].append(accuracy)
    at = max((at for at in scores if len(scores[at]) > 1), key=lambda at: statistics.mean(scores[at]))
    found = [trials.accuracy(case, method, draws[at], seed, measures=measures) for seed in SEEDS]
    accuracies = [accuracy for accuracy in found if accuracy is not None]
    if len(accuracies) < len(SEEDS):
        return None
    return {"accuracy": statistics.mean(accuracies), "of_seeds": accuracies, "options": asdict(draws[at])}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the headline: points over the best baseline, in the median over the cases."""
    gains = [row["gain_points"] for row in rows]
    by_unit = {
        f"dp_accuracy_gain_median_{unit}": statistics.median(of_unit)
        for unit in ("device", "sample")
        if (of_unit := [row["gain_points"] for row in rows if row["unit"] == unit])
    }
    return {"dp_accuracy_gain_median": statistics.median(gains) if gains else None, **by_unit}


def rows_of(trials: Trials) -> Iterator[dict[str, Any]]:
    """Yield the cases that were measured whole."""
    for case in CASES:
        found = {method: measured(trials, case, method, measures=False) for method in methods_of(case)}
        if None in found.values():
            continue
        accuracies = {method: each["accuracy"] for method, each in found.items() if each is not None}
        best = max(accuracy for method, accuracy in accuracies.items() if method != "ours")
        yield {**asdict(case), **found, "gain_points": 100 * (accuracies["ours"] - best)}


def main() -> None:
    """Measure what is not measured yet, for as long as is given, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=600.0, help="begin no case after so long; the next run goes on"
    )
    parser.add_argument("--part", default="0/1", help="measure only every n-th case, as 0/2 and 1/2 side by side")
    parser.add_argument("--report", action="store_true", help="write the results of what was measured, and end")
    arguments = parser.parse_args()
    number, parts = map(int, arguments.part.split("/"))
    torch.set_num_threads(1)
    trials = Trials(f"{number}-of-{parts}")
    until = time.monotonic() + 60 * arguments.minutes
    for case in [] if arguments.report else CASES[number::parts]:
        for method in methods_of(case):
            if time.monotonic() > until:
                break
            found = measured(trials, case, method, measures=True)
            assert found is not None
            print(f"{case}, {method}: {found['accuracy']:.3f} with {found['options']}", flush=True)
    if arguments.report:
        rows = list(rows_of(trials))
        print(save_results("privacy-dp", summary(rows), {"delta": DELTA, "cases": rows}))


if __name__ == "__main__":
    main()
