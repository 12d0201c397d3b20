"""What can be had for how much: Pareto fronts of batches and bytes, and how ours compare with the baselines'."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Headline = dict[str, float | int | None]


class Point(NamedTuple):
    """What a training took to the target."""

    batches: float
    """Of each device."""
    bytes: float
    """Of each device, each way."""


@dataclass(frozen=True)
class Contest:
    """What is compared on a task."""

    ours: Sequence[Point]
    """Everything that reached the target, by options of any method."""
    baselines: Sequence[Point]
    our_bytes: float
    """To the target, with the options that the search chose: the least of our methods. Infinite for none."""
    compressed_bytes: float
    """The same of the baselines that compress."""


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats in one figure without losing in the other, by bytes ascending."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, p.batches)):
        if math.isfinite(point.bytes) and math.isfinite(point.batches) and point.batches < least_batches(front):
            front.append(point)
    return front


def least_batches(points: Iterable[Point], budget: float = math.inf) -> float:
    """Return the fewest batches for at most so many bytes; infinite where no point is as cheap."""
    return min((point.batches for point in points if point.bytes <= budget), default=math.inf)


def headline(contests: Mapping[str, Contest]) -> Headline:
    """Return the ratios of ours to the baselines', below 1 where ours need less.

    Tasks without anything of ours, or of the baselines, do not count: they have not been run, or not in full.
    """
    fair = [contest for contest in contests.values() if contest.ours and contest.baselines]
    bytes_ratios = [c.our_bytes / c.compressed_bytes for c in fair if math.isfinite(c.compressed_bytes)]
    batches_ratios, ours_alone = [], 0
    for contest in fair:
        front = pareto_front(contest.baselines)
        # At the bytes of a point of theirs they reach the target; where ours do not, the ratio is infinite.
        batches_ratios += [least_batches(contest.ours, point.bytes) / point.batches for point in front]
        ours_alone += sum(point.bytes < front[0].bytes for point in pareto_front(contest.ours))
    return {
        "bytes_vs_best_compressed_median": _finite(statistics.median(bytes_ratios) if bytes_ratios else math.inf),
        "bytes_vs_best_compressed_worst": _finite(max(bytes_ratios, default=math.inf)),
        "batches_at_equal_bytes_median": _finite(statistics.median(batches_ratios) if batches_ratios else math.inf),
        "budgets_compared": len(batches_ratios),
        "budgets_only_ours_reach": ours_alone,
        "tasks_compared": len(fair),
    }


def _finite(ratio: float) -> float | None:
    return round(ratio, 3) if math.isfinite(ratio) else None
