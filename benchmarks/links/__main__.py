"""Seconds to a target behind links of several speeds: ours with one default, and the baselines tuned for each cell.

One process for the coordinator and one for each of four devices, each behind a link of its own with a rate and a delay
in both directions. The baselines run over the same exchange as ours, with its codecs. The tuned baseline of a cell, a
task on some links, is the fastest of a few configurations that are run there for real: those that an estimate puts
first among all trials of all baselines of the frontier benchmark (candidates.py). Ours has one default for all cells
(default.py). The devices share this machine's cores, so that computing takes longer than on devices of their own; run
nothing beside it. The benchmark goes on where it was stopped.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.convergence.learning_tasks import LEARNING_TASKS
from benchmarks.links.link import LINKS
from benchmarks.links.plots import plot_links
from benchmarks.links.report import figures, headline, results, speedups, tables
from benchmarks.links.run import Run
from benchmarks.links.study import Extent, run_cell, stored_runs
from benchmarks.shared.results import FOLDER, save_results

QUICK = Extent(Path("runs/links/quick"), Path("runs/frontier"), baselines=2, seeds=1, limit_s=60.0)

console = Console(highlight=False)


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="Tasks; all unless given.")] = None,
    links: Annotated[list[str] | None, typer.Option(help=f"{'; '.join(LINKS)}. All unless given.")] = None,
    baselines: Annotated[int, typer.Option(help="Configurations of baselines in each cell.", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="Runs of each configuration.", min=1)] = 3,
    limit_s: Annotated[float, typer.Option(help="A run is given up after so many seconds.")] = 300.0,
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing; report what has been run so far.")] = False,
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs/links"),
    trials: Annotated[Path, typer.Option(help="Trials of the frontier benchmark.")] = Path("runs/frontier"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Digits at 5 Mbit/s, two baselines and ours, one seed; writes no results.")
    ] = False,
) -> None:
    """Run what is missing; write JSON, tables and a plot to benchmarks/results."""
    extent = Extent(folder, trials, baselines, seeds, limit_s)
    if quick:
        extent, tasks, links = QUICK, tasks or ["digits"], links or ["5 Mbit/s, 20 ms"]
    chosen, behind = tasks or list(LEARNING_TASKS), links or list(LINKS)
    for name, known in [(t, list(LEARNING_TASKS)) for t in chosen] + [(n, list(LINKS)) for n in behind]:
        if name not in known:
            console.print(f"[bold red]error[/]: {name!r} is unknown; known are {'; '.join(known)}")
            raise typer.Exit(2)
    cells = [(task, name) for task in chosen for name in behind]
    for task, name in [] if stored else cells:
        for run in run_cell(extent, task, name):
            console.print(_line(run), soft_wrap=True)
    found = results(run for task, name in cells for run in stored_runs(extent, task, name))
    text = tables(found, list(LINKS))
    console.print(text, markup=False, soft_wrap=True)
    ratios = headline(found)
    console.print_json(json.dumps(ratios))
    if quick:
        return
    data = {
        "seeds": seeds,
        "baselines": baselines,
        "links": {name: [vars(link) for link in of_devices] for name, of_devices in LINKS.items()},
        "speedups": [{"task": t, "links": n, "speedup": round(r, 3)} for (t, n), r in speedups(found).items()],
        "results": figures(found),
    }
    path = save_results("links", ratios, data, "pytorch-optimizer", "scikit-learn")
    (FOLDER / "links.md").write_text(f"# Seconds to a target\n\n{text}")
    plot_links(FOLDER / "links.png", found, list(LINKS))
    console.print(f"written: {path}, the tables and the plot beside it")


def _line(run: Run) -> str:
    what = f"{run.task}, {run.links}: {run.method}, {', '.join(f'{n} {v:g}' for n, v in run.options.items()) or '-'}"
    cost = f"{run.seconds:.2f} s ({run.processor_s:.2f} of a core), {run.batches} batches, {run.bytes / 1e3:.1f} kB"
    return f"{what}, seed {run.seed}: {run.end} after {cost} {run.problem}"


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
