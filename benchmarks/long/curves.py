"""What a curve says: how good a training ended, and when it first was good enough."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from benchmarks.long.training import Variant
from benchmarks.long.trials import Point, Trial

SMOOTHED = 3
"""Accuracy is the mean of so many evaluations, the last of which counts as the time."""
_LAST = 5
"""The final accuracy is the mean of so many."""


@dataclass(frozen=True)
class Cost:
    """What a training took to a target; infinite if it did not come there."""

    batches: float
    """Of each device."""
    device_s: float
    """Processor seconds of each."""
    sgd_steps: float
    """The same, in steps of SGD."""
    megabytes: float
    """Of each device, each way."""


NEVER = Cost(math.inf, math.inf, math.inf, math.inf)


def final_accuracy(trial: Trial) -> float:
    """Return the accuracy at the end, of the last weights or the average, whichever is better; 0 if it diverged."""
    if trial.end == "diverged":
        return 0.0
    return max(_final(trial.points, variant) for variant in get_args(Variant))


def best_variant(trial: Trial) -> Variant:
    """Return which of both ended better."""
    variants: tuple[Variant, ...] = get_args(Variant)
    return max(variants, key=lambda variant: _final(trial.points, variant))


def cost_to(trial: Trial, target: float) -> Cost:
    """Return what it took to the target, by the last weights or the average, whichever came there in fewer batches."""
    return min((_cost(trial, variant, target) for variant in get_args(Variant)), key=lambda cost: cost.batches)


def smoothed(points: Sequence[Point], variant: Variant) -> list[tuple[Point, float]]:
    """Return the evaluations with the mean accuracy of each and those right before it."""
    known = [(point, value) for point in points if (value := point.accuracy(variant)) is not None]
    return [
        (known[last][0], statistics.fmean(value for _, value in known[last - SMOOTHED + 1 : last + 1]))
        for last in range(SMOOTHED - 1, len(known))
    ]


def _cost(trial: Trial, variant: Variant, target: float) -> Cost:
    reached = next((point for point, value in smoothed(trial.points, variant) if value >= target), None)
    if reached is None:
        return NEVER
    seconds = reached.seconds(variant)
    return Cost(reached.batches, seconds, seconds / trial.sgd_step_s, reached.megabytes)


def _final(points: Sequence[Point], variant: Variant) -> float:
    values = [value for point in points if (value := point.accuracy(variant)) is not None]
    return statistics.fmean(values[-_LAST:]) if values else 0.0
