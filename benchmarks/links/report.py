"""What the runs come to: medians over the seeds, the headline, and the tables."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.convergence.trials import learning_task
from benchmarks.links.configuration import OURS
from benchmarks.links.run import Run
from benchmarks.shared.record_store import options_text
from benchmarks.shared.results import markdown_table


@dataclass(frozen=True)
class Result:
    """A configuration on a task and links: medians over the seeds, but for the seconds over those that reached it."""

    task: str
    links: str
    method: str
    options: Mapping[str, float]
    seconds: float
    """To the target; infinite where most seeds did not reach it."""
    batches: float
    kilobytes: float
    processor_s: float
    reached: int
    seeds: int

    @property
    def is_ours(self) -> bool:
        """Whether it is ours."""
        return self.method == OURS.method


def results(runs: Iterable[Run]) -> list[Result]:
    """Return the medians of runs."""
    groups: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.task, run.links, run.method, options_text(run.options)), []).append(run)
    return [_result(group) for group in groups.values()]


def best_of_methods(found: Iterable[Result]) -> list[Result]:
    """Return for each task, links and method the fastest configuration: the tuned one."""
    best: dict[tuple[str, str, str], Result] = {}
    for result in sorted(found, key=lambda result: result.seconds):
        best.setdefault((result.task, result.links, result.method), result)
    return list(best.values())


def speedups(found: Sequence[Result]) -> dict[tuple[str, str], float]:
    """Return for each task and links the seconds of the fastest baseline over ours.

    0 where ours did not reach the target. Cells without ours, or where no baseline has reached it, do not count.
    """
    ratios = {}
    for cell in dict.fromkeys((result.task, result.links) for result in found):
        of_cell = [result for result in found if (result.task, result.links) == cell]
        ours = [result.seconds for result in of_cell if result.is_ours]
        theirs = min((result.seconds for result in of_cell if not result.is_ours), default=math.inf)
        if ours and math.isfinite(theirs):
            ratios[cell] = theirs / ours[0]
    return ratios


def headline(found: Sequence[Result]) -> dict[str, float | int | None]:
    """Return the ratios that the project quotes, above 1 where ours are faster."""
    ratios = list(speedups(found).values())
    return {
        "time_speedup_median": round(statistics.median(ratios), 3) if ratios else None,
        "time_speedup_worst": round(min(ratios), 3) if ratios else None,
        "cells_compared": len(ratios),
    }


def tables(found: Sequence[Result], links: Sequence[str]) -> str:
    """Return the results in Markdown: a table for each task."""
    tasks = dict.fromkeys(result.task for result in found)
    return "\n".join(_table([result for result in found if result.task == task], links) for task in tasks)


def figures(found: Iterable[Result]) -> list[dict[str, Any]]:
    """Return the results as JSON holds them, with null for what is infinite."""
    return [
        {name: None if value == math.inf else value for name, value in vars(result).items()}
        for result in sorted(found, key=lambda result: (result.task, result.links, result.seconds))
    ]


def _result(runs: Sequence[Run]) -> Result:
    first = runs[0]
    # What was not reached took at least what was spent on it.
    measured = [run for run in runs if run.is_reached] or runs
    return Result(
        first.task,
        first.links,
        first.method,
        first.options,
        statistics.median(run.cost for run in runs),
        statistics.median(run.batches for run in measured),
        round(statistics.median(run.bytes for run in measured) / 1e3, 2),
        statistics.median(run.processor_s for run in measured),
        sum(run.is_reached for run in runs),
        len(runs),
    )


def _table(found: Sequence[Result], links: Sequence[str]) -> str:
    task = learning_task(found[0].task)
    shown = [name for name in links if any(result.links == name for result in found)]
    of_cell = {(result.method, result.links): result for result in best_of_methods(found)}
    order = sorted(found, key=lambda result: (not result.is_ours, result.seconds))
    methods = list(dict.fromkeys(result.method for result in order))
    rows = [
        [f"**{m}**" if m == OURS.method else m, *(_cell(of_cell.get((m, name))) for name in shown)] for m in methods
    ]
    ratios = speedups(found)
    cells = [ratios.get((found[0].task, name)) for name in shown]
    rows.append(["fastest baseline over ours", *(None if ratio is None else f"{ratio:.2f}" for ratio in cells)])
    better = "at most" if task.metric == "loss" else "at least"
    title = f"## {task.name}: test {task.metric} {better} {task.target:g}\n\n"
    note = "Seconds; batches of each device; kB of each device, each way.\n\n"
    return f"{title}{note}{markdown_table(['method', *shown], rows)}\n"


def _cell(result: Result | None) -> str | None:
    if result is None:
        return None
    if not math.isfinite(result.seconds):
        return f"not reached ({result.reached} of {result.seeds} seeds)"
    return f"{result.seconds:.2f} s; {result.batches:g}; {result.kilobytes:.1f}"
