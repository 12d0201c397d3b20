"""Batches to a target accuracy: ours against first-order methods and second-order peers, all tuned alike.

For each task and method one number is tuned on seed 0 over a logarithmic grid, which grows while its best value lies at
an edge; then five seeds are run with the chosen value. Synchronous methods, ours included, run on the union of four
devices' batches, which equals the distributed run (`tests/e2e` shows it). The benchmark goes on where it was stopped.
"""

import json
import math
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.convergence.learning_tasks import LEARNING_TASKS
from benchmarks.convergence.methods import METHODS
from benchmarks.convergence.plots import plot_convergence
from benchmarks.convergence.study import DEFAULT, OURS, Extent, Study, study_all
from benchmarks.convergence.trials import learning_task
from benchmarks.shared.results import FOLDER, markdown_table, save_results

QUICK_BUDGET = 150
LINKS_MBIT_S = (10, 100)

console = Console(highlight=False)


def _budget(task: str, quick: bool) -> int:
    return QUICK_BUDGET if quick else learning_task(task).budget


def headline(studies: list[Study]) -> dict[str, float | None]:
    """Return the ratios of batches to target: above 1, ours needs fewer."""
    first, untuned, peer = [], [], []
    for task in {study.task: None for study in studies}:
        of_task = [study for study in studies if study.task == task]
        ours = next(study.median for study in of_task if study.method == OURS)
        default = next(study.median for study in of_task if study.method == DEFAULT)
        best_first = min(study.median for study in of_task if study.family == "first-order")
        first.append(best_first / ours)
        untuned.append(best_first / default)
        peer.append(min(study.median for study in of_task if study.family == "second-order peer") / ours)
    figures = {
        "median_ratio_vs_first_order": statistics.median(first),
        "worst_ratio_vs_first_order": min(first),
        "default_median_ratio_vs_first_order": statistics.median(untuned),
        "default_worst_ratio_vs_first_order": min(untuned),
        "worst_ratio_vs_second_order_peer": min(peer),
    }
    return {name: round(value, 2) if math.isfinite(value) else None for name, value in figures.items()}


def table(studies: list[Study]) -> str:
    """Return the results in Markdown, a table for each task."""
    parts = []
    for name in {study.task: None for study in studies}:
        task = learning_task(name)
        better = "at most" if task.metric == "loss" else "at least"
        parts.append(
            f"## {task.name}: test {task.metric} {better} {task.target:g}\n\nFour devices, {task.describes}.\n"
        )
        rows = []
        for s in sorted((s for s in studies if s.task == name), key=lambda s: s.median):
            is_reached = math.isfinite(s.median)
            counted = sorted(math.inf if batches is None else batches for batches in s.batches)
            shown = [f"{count:g}" if math.isfinite(count) else f">{task.budget}" for count in counted]
            median = f"{s.median:g}" if is_reached else f">{task.budget}"
            costs = (
                [f"{s.bytes_each_way / 1e6:.2f}", f"{s.device_s:.2f}"]
                + [f"{s.seconds_on_link(link):.1f}" for link in LINKS_MBIT_S]
                if is_reached
                else ["-"] * 4
            )
            exchanges = f"{s.exchanges:g}" if is_reached else "-"
            tuned = "default" if s.method.endswith("untuned") else f"{s.tuned} {s.value:g}"
            rows.append([s.method, tuned, median, f"{shown[0]} to {shown[-1]}", exchanges, *costs])
        header = ["method", "tuned", "batches", "seeds", "exchanges", "MB each way", "device s"]
        parts.append(markdown_table([*header, *(f"s at {link} Mbit/s" for link in LINKS_MBIT_S)], rows) + "\n")
    return "\n".join(parts)


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="Tasks; all unless given.")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="Methods; all unless given.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of the final runs.", min=1)] = 5,
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing; report what has been run so far.")] = False,
    jobs: Annotated[int, typer.Option(help="Trials at once; each takes one core.", min=1)] = 2,
    folder: Annotated[Path, typer.Option(help="Where trials are kept.")] = Path("runs/convergence"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Two tasks, six methods, one seed; writes no results.")
    ] = False,
) -> None:
    """Compare all methods on all tasks; write JSON, a table and a plot to benchmarks/results."""
    if quick:
        folder = folder / "quick"
        tasks, seeds = tasks or ["digits", "autoencoder"], 1
        methods = methods or [OURS, "SGD with momentum", "AdamW", "Muon", "SOAP", "FedAvg, 20 local"]
    names = methods or [method.name for method in METHODS]
    chosen = tasks or list(LEARNING_TASKS)
    for name, known in [(t, list(LEARNING_TASKS)) for t in chosen] + [(m, [x.name for x in METHODS]) for m in names]:
        if name not in known:
            console.print(f"[bold red]error[/]: {name!r} is unknown; known are {', '.join(known)}")
            raise typer.Exit(2)
    studies: list[Study] = []
    with ProcessPoolExecutor(jobs) as pool:
        asked = [
            pool.submit(study_all, Extent(folder, seeds, _budget(task, quick), stored), task, name)
            for name in names
            for task in chosen
        ]
        for number, done in enumerate(as_completed(asked), start=1):
            studies += done.result()
            console.print(f"[cyan]{number} of {len(asked)} studies done[/]")
    studies.sort(key=lambda s: (chosen.index(s.task), s.median))
    text = table(studies)
    console.print(text, markup=False, soft_wrap=True)
    figures = headline(studies) if {OURS} <= set(names) else {}
    console.print_json(json.dumps(figures))
    if quick:
        return
    data: dict[str, Any] = {
        "links_formula": "median batches x device seconds + 2 x bytes each way x 8 / link rate",
        "studies": [asdict(s) | {"median": s.median if math.isfinite(s.median) else None} for s in studies],
    }
    path = save_results("convergence", figures, data, "pytorch-optimizer", "scikit-learn")
    (FOLDER / "convergence.md").write_text(f"# Convergence\n\n{text}")
    plot_convergence(FOLDER / "convergence.png", studies)
    console.print(f"written: {path} and the table and plot beside it")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
