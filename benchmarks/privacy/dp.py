"""Accuracy under a privacy budget, ours against DP-FedAvg and DP-SGD: `python -m benchmarks.privacy.dp`.

All clip what a unit contributes, add the same noise by the same accountant, average their iterates alike, and are given
their options by the same kind of search: so many draws are tried with one seed, the best few with another, and the best
is run with seeds that chose nothing. Since who tunes on private data pays for it, each method's draw that is best over
all cases is tried in all of them, too. The devices are simulated.

- ours: `PrivateGradients`, the product's own plan and optimizer.
- DP-SGD: one gradient of all of a device's samples in each exchange (of each of its samples, clipped by itself, where
  the unit is a sample), with momentum.
- DP-FedAvg (McMahan et al. 2018, https://arxiv.org/abs/1710.06963), with a fixed clip norm as in Flower's mod: local
  steps of SGD; its unit is a device.
"""

import argparse
import json
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


# What is drawn was narrowed once, for each method alike, after twelve draws from wider ranges with one seed.


def _drawn_newton(rng: random.Random) -> Options:
    return Options(
        exchanges=rng.choice([25, 50, 100]),
        clip_norm=rng.choice([0.3, 0.6]),
        lr=10 ** rng.uniform(-0.7, 0.4),
        momentum=0.0,
        averaging=0.9,
        damping=10 ** rng.uniform(-0.7, 0.3),
        kl_clip=rng.choice([0.1, 0.3]),
    )


def _drawn_first_order(rng: random.Random, *, is_local: bool) -> Options:
    momentum, clip_norm = rng.choice([0.0] if is_local else [0.0, 0.5]), rng.choice([0.3, 0.6])
    reach = 10 ** rng.uniform(-1.0 if is_local else -1.3, 0.3)
    return Options(
        exchanges=rng.choice([12, 25, 50] if is_local else [25, 50, 100, 200]),
        clip_norm=clip_norm,
        lr=reach * (1 - momentum) / clip_norm,  # what a step with a clipped mean is long in the end
        momentum=momentum,
        averaging=rng.choice([0.8, 0.9]),
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


def draws_of(method: str) -> list[Options]:
    """Return the options that a method is tried with, the same in each case."""
    rng = random.Random(method)
    return [METHODS[method][0](rng) for _ in range(DRAWS)]


def measured(trials: Trials, case: Case, method: str, *, measures: bool) -> dict[str, Any] | None:
    """Return a method's accuracy with the best of its options, or None if trials are missing."""
    draws = draws_of(method)
    scores: dict[int, list[float]] = {at: [] for at in range(DRAWS)}
    for chosen, seed in zip((range(DRAWS), None), CHOOSING_SEEDS, strict=True):
        best = sorted(scores, key=lambda at: -statistics.mean(scores[at]))[:FINALISTS] if chosen is None else chosen
        for at in best:
            accuracy = trials.accuracy(case, method, draws[at], seed, measures=measures)
            if accuracy is None:
                return None
            scores[at].append(accuracy)
    at = max((at for at in scores if len(scores[at]) > 1), key=lambda at: statistics.mean(scores[at]))
    return with_options(trials, case, method, draws[at], measures=measures)


def with_options(trials: Trials, case: Case, method: str, options: Options, *, measures: bool) -> dict[str, Any] | None:
    """Return a method's accuracy with some options, or None if trials are missing."""
    found = [trials.accuracy(case, method, options, seed, measures=measures) for seed in SEEDS]
    accuracies = [accuracy for accuracy in found if accuracy is not None]
    if len(accuracies) < len(SEEDS):
        return None
    return {"accuracy": statistics.mean(accuracies), "of_seeds": accuracies, "options": asdict(options)}


def default_of(trials: Trials, method: str) -> Options | None:
    """Return the options that are best over all cases of a method, or None if trials are missing."""
    cases = [case for case in CASES if method in methods_of(case)]
    means = []
    for options in draws_of(method):
        found = [trials.accuracy(case, method, options, CHOOSING_SEEDS[0], measures=False) for case in cases]
        accuracies = [accuracy for accuracy in found if accuracy is not None]
        if len(accuracies) < len(cases):
            return None
        means.append((statistics.mean(accuracies), options))
    return max(means, key=lambda mean: mean[0])[1]


def summary(rows: Sequence[Mapping[str, Any]], defaults: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the headline: points over the best baseline, in the median over the cases."""

    def median(of: Sequence[Mapping[str, Any]], unit: str = "") -> float | None:
        gains = [row["gain_points"] for row in of if unit in ("", row["unit"])]
        return round(statistics.median(gains), 2) if gains else None

    return {
        "dp_accuracy_gain_median": median(rows),
        "dp_accuracy_gain_median_unit_device": median(rows, "device"),
        "dp_accuracy_gain_median_unit_sample": median(rows, "sample"),
        "dp_accuracy_gain_median_with_one_default": median(defaults),
    }


def rows_of(find: Callable[[Case, str], dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
    """Yield the cases that were measured whole."""
    for case in CASES:
        found = {method: find(case, method) for method in methods_of(case)}
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
    parser.add_argument("--report", action="store_true", help="try the defaults, write the results, and end")
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
    defaults = {method: default_of(trials, method) for method in METHODS}

    def by_default(case: Case, method: str) -> dict[str, Any] | None:
        options = defaults[method]
        return None if options is None else with_options(trials, case, method, options, measures=arguments.report)

    if arguments.report:
        rows = list(rows_of(lambda case, method: measured(trials, case, method, measures=False)))
        with_one = list(rows_of(by_default))
        data = {"delta": DELTA, "cases": rows, "with_one_default": with_one}
        print(save_results("privacy-dp", summary(rows, with_one), data))


if __name__ == "__main__":
    main()
