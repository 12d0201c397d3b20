"""Batches to a target accuracy: ours against first-order methods and second-order peers, all tuned alike.

For each task and method one number is tuned on seed 0 over a logarithmic grid, which grows while its best value lies at
an edge; then five seeds are run with the chosen value. Synchronous methods, ours included, run on the union of four
devices' batches, which equals the distributed run (`tests/e2e` shows it). The benchmark goes on where it was stopped.
"""

import json
import math
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.learning_tasks import LEARNING_TASKS
from benchmarks.methods import METHODS, Family, Method, federated
from benchmarks.plots import plot_convergence
from benchmarks.results import FOLDER, markdown_table, save_results
from benchmarks.trials import (
    NotStoredError,
    Trial,
    TrialStore,
    best_value,
    device_seconds_per_batch,
    learning_task,
    run_trial,
    values_to_try,
)

OURS = "EdgeNewton kfac"
DEFAULT = "EdgeNewton kfac, untuned"
DEFAULT_PART = 0.05
"""The default of `update_clip`, which is what ours is tuned by."""
QUICK_BUDGET = 150
LINKS_MBIT_S = (10, 100)
BYTES_PER_VALUE = 4
MEASURED_BATCHES = 60

console = Console(highlight=False)


@dataclass(frozen=True)
class Study:
    """What is known of a method on a task."""

    task: str
    method: str
    family: Family
    tuned: str
    value: float
    trials: int
    """Trials that the tuning took."""
    batches: list[int | None]
    """Batches of each device to the target, for each seed; None where the budget was too small."""
    exchanges: float
    bytes_each_way: float
    device_s_per_batch: float
    curve: list[tuple[int, float]]
    """Of the first seed."""

    @property
    def median(self) -> float:
        """Median of the batches to the target; infinite if most seeds did not reach it."""
        return statistics.median(math.inf if batches is None else batches for batches in self.batches)

    @property
    def device_s(self) -> float:
        """Processor seconds of a device to the target."""
        return self.median * self.device_s_per_batch

    def seconds_on_link(self, mbit_s: float) -> float:
        """Seconds to the target where computing and exchanging take turns, and a link carries one way at a time."""
        return self.device_s + 2 * self.bytes_each_way * 8 / (mbit_s * 1e6)


@dataclass(frozen=True)
class Extent:
    """How much is run."""

    folder: Path
    """Where trials are kept."""
    seeds: int
    """Of the final runs."""
    budget: int
    """Batches after which a trial is given up."""
    is_stored: bool
    """Whether only what is kept counts, and nothing is run."""

    def store(self, task: str, method: Method) -> TrialStore:
        """Return the trials of a method on a task."""
        return TrialStore(self.folder / task / f"{method.name}.jsonl", is_complete=self.is_stored)


def study(extent: Extent, task: str, method: Method) -> Study:
    """Tune a method on a task, then run it with all seeds."""
    store = extent.store(task, method)
    tried: dict[float, Trial] = {}
    for value in values_to_try(method, tried):
        # What has not reached the target by then cannot be the best.
        limit = min([trial.batches for trial in tried.values() if trial.batches is not None], default=extent.budget)
        tried[value] = _trial(store, task, method, value, 0, limit)
    return evaluate(extent, task, method, best_value(tried), len(tried))


def evaluate(extent: Extent, task: str, method: Method, value: float, trials: int) -> Study:
    """Run all seeds with one value."""
    store = extent.store(task, method)
    runs = [_trial(store, task, method, value, seed, extent.budget) for seed in range(extent.seeds)]
    median = statistics.median(trial.cost for trial in runs)
    batches = MEASURED_BATCHES if math.isinf(median) else min(int(median), MEASURED_BATCHES)
    return Study(
        task,
        method.name,
        method.family,
        method.tuned,
        value,
        trials,
        [trial.batches for trial in runs],
        statistics.median(trial.exchanges for trial in runs),
        BYTES_PER_VALUE * statistics.median(trial.sent for trial in runs),
        device_seconds_per_batch(task, method, value, max(batches, method.local_steps)),
        runs[0].curve,
    )


def study_all(extent: Extent, task: str, name: str) -> list[Study]:
    """Study a method, and what depends on it: the untuned form of ours, FedAdam with FedAvg's best clients' rate.

    Nothing of a study that lacks trials is returned where only what is kept counts.
    """
    method = next(method for method in METHODS if method.name == name)
    studies: list[Study] = []
    with suppress(NotStoredError):
        studies.append(study(extent, task, method))
    if name == OURS:
        untuned = evaluate(extent, task, method, DEFAULT_PART, 0)
        studies.append(Study(**{**asdict(untuned), "method": DEFAULT}))
    if name.startswith("FedAvg") and studies:
        with suppress(NotStoredError):
            studies.append(study(extent, task, federated(method.local_steps, studies[0].value)))
    return studies


def _budget(task: str, quick: bool) -> int:
    return QUICK_BUDGET if quick else learning_task(task).budget


def _trial(store: TrialStore, task: str, method: Method, value: float, seed: int, budget: int) -> Trial:
    known = store.find(task, method.name, value, seed, budget)
    if known is not None:
        return known
    trial = run_trial(task, method, value, seed, budget)
    store.add(trial)
    outcome = f"{trial.batches} batches" if trial.batches else f"not within {budget} (best {trial.best:.3g})"
    print(f"{task:12} {method.name:34} {method.tuned} {value:<8g} seed {seed}: {outcome}", flush=True)
    return trial


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
