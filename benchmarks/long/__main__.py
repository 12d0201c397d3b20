"""Accuracy against batches, bytes and processor seconds on long tasks: ours with one default, the baselines tuned.

Eight devices with skewed labels are simulated on one model, step by step, with each device's own BatchNorm. What has
been run is kept, the benchmark goes on where it was stopped, and the report says what is missing.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.long.fleet_data import BATCH_SIZE, DEVICES, FleetData
from benchmarks.long.methods import METHODS
from benchmarks.long.plots import plot_long
from benchmarks.long.report import curve_line, figures, tables, trial_line
from benchmarks.long.results import contest, headline
from benchmarks.long.runner import run_all
from benchmarks.long.study import TUNING_SHARE, TUNING_TRIALS, Extent, Trials, given, wanted
from benchmarks.long.tasks import long_task, tasks_for
from benchmarks.long.trials import EVALUATE_EVERY, Trial
from benchmarks.shared.results import FOLDER, save_results

QUICK = ("kfac", "sgd", "soap")

console = Console(highlight=False, soft_wrap=True)


def available(names: Sequence[str]) -> list[str]:
    """Return the tasks whose data can be had here, and say what is the matter with the others."""
    found = []
    for name in names:
        kind = long_task(name)
        try:
            FleetData.of(kind.load(), kind.partition)
        except (ValueError, OSError) as error:
            console.print(f"[bold yellow]left out[/]: {name}: {error}")
        else:
            found.append(name)
    return found


def parsed(options: Sequence[str]) -> dict[str, float]:
    """Return options of the form NAME=NUMBER.

    Raises:
        BadParameter: one is not of this form.

    """
    found = {}
    for text in options:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not NAME=NUMBER, such as update_clip=0.03") from None
    return found


def main(
    task: Annotated[
        list[str] | None, typer.Option(help="Tasks; unless given all, and with a GPU the large ones.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods; all unless given.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of the trials of full length.", min=1)] = 3,
    batches: Annotated[int | None, typer.Option(help="Batches of each device, if not the task's.", min=1)] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER, several times: run trials with these options alone, and report nothing."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Trials at once; each takes one core.", min=1)] = 2,
    hours: Annotated[float | None, typer.Option(help="Begin no trial after so many.", min=0)] = None,
    device: Annotated[str, typer.Option(help="Where trials are trained, such as cuda.")] = "cpu",
    folder: Annotated[Path, typer.Option(help="Where trials are kept.")] = Path("runs/long"),
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing; report what has been run so far.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Digits, three methods, 60 batches, one seed; writes no results.")
    ] = False,
) -> None:
    """Run what is missing, and write JSON, tables and a plot to benchmarks/results."""
    if quick:
        folder, task, method, batches, seeds = folder / "quick", ["digits"], list(QUICK), 60, 1
    methods = method or list(METHODS)
    for name in methods:
        if name not in METHODS:
            raise typer.BadParameter(f"method {name!r} is unknown; known are {', '.join(METHODS)}")
    options = parsed(option or [])
    extent = Extent(
        folder / "own" if options else folder, available(task or tasks_for(device)), methods, seeds, batches
    )
    if not extent.tasks:
        console.print("[bold red]error[/]: no task can be had here")
        raise typer.Exit(2)
    trials = Trials(extent)
    until = float("inf") if hours is None else time.monotonic() + 3600 * hours

    def on_trial(trial: Trial) -> None:
        console.print(trial_line(trial))

    failed: list[str] = []
    if options:
        asked = given(extent, options)
        failed = run_all(lambda: [r for r in asked if not trials.has(r)], trials, jobs, device, until, on_trial)
        for request in asked:
            for trial in trials.all(request.task, request.method):
                if trial.key == request.key:
                    console.print(f"{trial_line(trial)}\n  {curve_line(trial)}")
    else:
        if not stored:
            failed = run_all(lambda: wanted(extent, trials), trials, jobs, device, until, on_trial)
        is_whole = not (task or method or batches)
        report(extent, trials, ("long" if device == "cpu" else f"long-{device}") if is_whole else None)
    for problem in failed:
        console.print(f"[bold red]failed[/]: {problem}")
    if failed:
        raise typer.Exit(1)


def report(extent: Extent, trials: Trials, name: str | None) -> None:
    """Print what the trials come to, and write it under a name, if there is one."""
    contests = [contest(task, [t for m in extent.methods for t in trials.all(task, m)]) for task in extent.tasks]
    contests = [of_task for of_task in contests if of_task.settings]
    left: dict[str, dict[str, int]] = {task: {} for task in extent.tasks}
    for request in wanted(extent, trials):
        left[request.task][request.method] = left[request.task].get(request.method, 0) + 1
    text = tables(contests, left)
    console.print(text, markup=False)
    ratios = headline(contests)
    console.print_json(json.dumps(ratios))
    if name is None:
        console.print("a part of the benchmark: no results are written")
        return
    data = {
        "devices": DEVICES,
        "batch_size": BATCH_SIZE,
        "seeds": extent.seeds,
        "batches_between_evaluations": EVALUATE_EVERY,
        "tuning": {"trials": TUNING_TRIALS, "share_of_the_batches": TUNING_SHARE},
        "missing": left,
        "tasks": figures(contests),
    }
    path = save_results(name, ratios, data, "pytorch-optimizer", "scikit-learn")
    (FOLDER / f"{name}.md").write_text(f"# Long trainings\n\n{text}")
    plot_long(FOLDER / f"{name}.png", contests)
    console.print(f"written: {path}, the tables and the plot beside it")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
