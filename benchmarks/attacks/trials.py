"""One trial: a task, how its data are spread, a method, an attack, how many devices are bad, a seed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch

from benchmarks.attacks import flower, ours
from benchmarks.attacks.attacks import ATTACKS, BY_NAME, NONE
from benchmarks.attacks.data import DEVICES, TASKS, Fleet
from coordinator.session.settings import AggregatorName

RECOMMENDED = "history"
BAD = (1, 2)
ABSENT = "absent"
"""In place of an attack: the bad devices stay away, so that nothing is lost but their data."""
RULES: tuple[str, ...] = get_args(AggregatorName)
FLOWER = tuple(flower.STRATEGIES)
ON_SKEWED = ("mean", RECOMMENDED, "multi-krum")
"""Rules that are tried on skewed data, too."""


@dataclass(frozen=True)
class Case:
    """What a trial is of."""

    task: str
    spread: str
    method: str
    attack: str
    bad: int
    seed: int


@dataclass(frozen=True)
class Trial(Case):
    """How one went."""

    accuracy: float
    seconds: float

    @property
    def key(self) -> Case:
        """What it is of."""
        return Case(self.task, self.spread, self.method, self.attack, self.bad, self.seed)


def run(case: Case, rate: float = 0.0, *, is_short: bool = False) -> Trial:
    """Train a case; `rate` is Flower's."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    is_absent = case.attack == ABSENT
    attack, bad = (NONE, 0) if is_absent else (BY_NAME[case.attack], case.bad)
    devices = DEVICES - case.bad if is_absent else DEVICES
    fleet = Fleet(case.task, case.spread, case.seed, devices, bad, flips_labels=attack.flips_labels)
    if case.method in FLOWER:
        rounds = 4 if is_short else flower.ROUNDS
        accuracy = flower.accuracy(fleet, case.method, attack, bad, case.seed, rate, rounds)
    else:
        steps = 20 if is_short else ours.STEPS
        accuracy = ours.accuracy(fleet, case.method, attack, bad, case.seed, steps)
    seconds = time.perf_counter() - began
    return Trial(case.task, case.spread, case.method, case.attack, case.bad, case.seed, accuracy, seconds)


def cases(seeds: int, other_seeds: int = 1, tasks: tuple[str, ...] = TASKS) -> Iterator[Case]:
    """Yield all cases, those first that the headline needs.

    Args:
        seeds: of the recommended rule and of the mean, on data that are alike.
        other_seeds: of all else.
        tasks: that are trained.

    """
    first = (RECOMMENDED, "mean")
    others = (*(rule for rule in RULES if rule not in first), *FLOWER)
    of_all = ((first, "alike", seeds), (ON_SKEWED[:2], "skewed", other_seeds), (others, "alike", other_seeds))
    for methods, spread, count in (*of_all, (ON_SKEWED[2:], "skewed", other_seeds)):
        for seed in range(count):
            for method in methods:
                for task in tasks:
                    yield from _of_method(task, spread, method, seed)


def _of_method(task: str, spread: str, method: str, seed: int) -> Iterator[Case]:
    yield Case(task, spread, method, NONE.name, 0, seed)
    if method == "mean":
        yield from (Case(task, spread, method, ABSENT, bad, seed) for bad in BAD)
    for attack in ATTACKS:
        for bad in BAD:
            is_possible = method != "Bulyan" or bad <= flower.BULYAN_BEARS
            if is_possible and not (attack.needs_curvature and method in FLOWER):
                yield Case(task, spread, method, attack.name, bad, seed)
