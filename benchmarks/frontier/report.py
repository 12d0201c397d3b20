"""What the studies come to: the contest of each task, the tables, and the figures that are kept."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.convergence.trials import learning_task
from benchmarks.frontier.front import Contest, Point, pareto_front
from benchmarks.frontier.interface import Family
from benchmarks.frontier.study import Study
from benchmarks.shared.record_store import options_text
from benchmarks.shared.results import markdown_table


def contest(studies: Sequence[Study]) -> Contest:
    """Return what is compared on the task of these studies."""

    def points(family: Family) -> list[Point]:
        return [point for study in studies if study.family == family for point in study.points]

    ours = [study.chosen.bytes for study in studies if study.family == "ours"]
    compressed = [study.chosen.bytes for study in studies if study.family == "baseline" and study.is_compressed]
    return Contest(points("ours"), points("baseline"), min(ours, default=math.inf), min(compressed, default=math.inf))


def tables(studies: Sequence[Study]) -> str:
    """Return the results in Markdown: for each task the chosen options of all methods, by bytes."""
    return "\n".join(
        _table([study for study in studies if study.task == task]) for task in {study.task: None for study in studies}
    )


def figures(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Return the studies as JSON holds them, with null for what is infinite."""
    return [
        {
            "task": study.task,
            "method": study.method,
            "family": study.family,
            "is_compressed": study.is_compressed,
            "front": pareto_front(study.points),
            "settings": [
                {name: _finite(value) for name, value in asdict(setting).items() if name != "rank"}
                for setting in study.settings
            ],
        }
        for study in studies
    ]


def _table(studies: Sequence[Study]) -> str:
    task = learning_task(studies[0].task)
    better = "at most" if task.metric == "loss" else "at least"
    rows = []
    for study in sorted(studies, key=lambda study: (study.chosen.bytes, study.chosen.batches)):
        chosen = study.chosen
        is_reached = math.isfinite(chosen.bytes)
        costs = [f"{chosen.batches:g}", f"{chosen.bytes / 1e3:.1f}", f"{chosen.exchanges:g}"]
        rows.append(
            [
                f"**{study.method}**" if study.family == "ours" else study.method,
                options_text(chosen.options),
                *(costs if is_reached else [None] * 3),
                f"{chosen.seeds_reached} of {chosen.seeds}",
            ]
        )
    header = ["method", "options", "batches", "kB each way", "exchanges", "seeds reached"]
    title = f"## {task.name}: test {task.metric} {better} {task.target:g}\n\nFour devices, {task.describes}.\n\n"
    return f"{title}{markdown_table(header, rows)}\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
