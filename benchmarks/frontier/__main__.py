"""Batches against bytes to a target: what computing saves exchanging, for ours and for published ways to compress.

Four devices are simulated one after the other, each with the batches that it would have in a real run. Every method
has the same number of trials: its options are searched for the fewest bytes on seed 0, then the best are run with three
seeds. All trials count as points of a method's front. The benchmark goes on where it was stopped.
"""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.convergence.learning_tasks import LEARNING_TASKS
from benchmarks.frontier.front import headline
from benchmarks.frontier.methods import METHODS
from benchmarks.frontier.plots import plot_frontier
from benchmarks.frontier.report import contest, figures, tables
from benchmarks.frontier.study import Extent, Study, study
from benchmarks.shared.results import FOLDER, save_results

QUICK = ("SGD, fp32", "SOAP, int4", "FedAvg, int8", "MuLoCo, int4", "Muon SparseLoCo, sparse2")

console = Console(highlight=False)


def study_named(extent: Extent, task: str, name: str) -> Study | None:
    """Study a method of the registry, which another process finds by its name."""
    return study(extent, task, next(method for method in METHODS if method.name == name))


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="Tasks; all unless given.")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="Methods; all unless given.")] = None,
    trials: Annotated[int, typer.Option(help="Trials of each search.", min=1)] = 10,
    seeds: Annotated[int, typer.Option(help="Seeds of the chosen options.", min=1)] = 3,
    budget_factor: Annotated[float, typer.Option(help="Times the batches of the convergence benchmark.")] = 2.0,
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing; report what has been run so far.")] = False,
    jobs: Annotated[int, typer.Option(help="Trials at once; each takes one core.", min=1)] = 2,
    folder: Annotated[Path, typer.Option(help="Where trials are kept.")] = Path("runs/frontier"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Digits, five methods and ours, three trials, one seed; writes no results.")
    ] = False,
) -> None:
    """Compare all methods on all tasks; write JSON, tables and plots to benchmarks/results."""
    if quick:
        folder, trials, seeds, budget_factor = folder / "quick", 3, 1, 0.5
        tasks = tasks or ["digits"]
        methods = methods or [method.name for method in METHODS if method.name in QUICK or method.family == "ours"]
    names = methods or [method.name for method in METHODS]
    chosen = tasks or list(LEARNING_TASKS)
    for name, known in [(t, list(LEARNING_TASKS)) for t in chosen] + [(m, [x.name for x in METHODS]) for m in names]:
        if name not in known:
            console.print(f"[bold red]error[/]: {name!r} is unknown; known are {'; '.join(known)}")
            raise typer.Exit(2)
    extent = Extent(folder, trials, seeds, budget_factor, stored)
    studies: list[Study] = []
    with ProcessPoolExecutor(jobs) as pool:
        asked = [pool.submit(study_named, extent, task, name) for task in chosen for name in names]
        for number, done in enumerate(as_completed(asked), start=1):
            result = done.result()
            studies += [] if result is None else [result]
            if not stored:
                console.print(f"[cyan]{number} of {len(asked)} studies done[/]")
    studies.sort(key=lambda s: (chosen.index(s.task), s.chosen.rank))
    of_task = {task: [s for s in studies if s.task == task] for task in dict.fromkeys(s.task for s in studies)}
    text = tables(studies)
    console.print(text, markup=False, soft_wrap=True)
    ratios = headline({task: contest(found) for task, found in of_task.items()})
    console.print_json(json.dumps(ratios))
    if quick:
        return
    data = {"trials": trials, "seeds": seeds, "budget_factor": budget_factor, "studies": figures(studies)}
    path = save_results("frontier", ratios, data, "pytorch-optimizer", "scikit-learn")
    (FOLDER / "frontier.md").write_text(f"# Batches and bytes to a target\n\n{text}")
    for task, found in of_task.items():
        plot_frontier(FOLDER / f"frontier-{task}.png", found)
    console.print(f"written: {path}, the tables and the plots beside it")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
