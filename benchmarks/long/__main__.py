"""Accuracy against batches, bytes and processor seconds on long tasks: ours with one default, the baselines tuned.

Eight devices with skewed labels are simulated on one model, step by step, with each device's own BatchNorm. What has
been run is kept, the benchmark goes on where it was stopped, and the report says what is missing.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.long.curves import best_variant, final_accuracy
from benchmarks.long.fleet_data import FleetData
from benchmarks.long.methods import METHODS
from benchmarks.long.study import Extent, Trials, wanted
from benchmarks.long.tasks import LONG_TASKS, long_task
from benchmarks.long.trials import Request, Trial, run_trial
from benchmarks.shared.record_store import options_text

console = Console(highlight=False)


def line(trial: Trial) -> str:
    """Return a trial in one line."""
    cost = ""
    last = trial.points[-1] if trial.points else None
    if last is not None:
        of_batch = last.device_s / last.batches
        steps = of_batch / trial.sgd_step_s
        cost = f"; {of_batch * 1e3:.1f} ms a batch, {steps:.2f} steps of SGD; {last.megabytes:.1f} MB"
    return (
        f"{trial.task}, {trial.method}, {options_text(trial.options)}, seed {trial.seed}: {trial.end} after "
        f"{last.batches if last else 0} of {trial.batches} batches; accuracy {final_accuracy(trial):.4f} "
        f"({best_variant(trial)}){cost}"
    )


def run_all(extent: Extent, trials: Trials, jobs: int, device: str, until: float) -> None:
    """Run what is wanted, several at once, until nothing is or the time is over."""
    running: dict[Future[Trial], Request] = {}
    with ProcessPoolExecutor(jobs) as pool:
        while True:
            under_way = {request.key for request in running.values()}
            due = [request for request in wanted(extent, trials) if request.key not in under_way]
            for request in due[: jobs - len(running)] if time.monotonic() < until else []:
                running[pool.submit(run_trial, request, device)] = request
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                del running[done]
                trials.add(done.result())
                console.print(line(done.result()), soft_wrap=True)


def run_given(extent: Extent, trials: Trials, options: dict[str, float], jobs: int, device: str) -> Iterator[Trial]:
    """Run trials with given options, and yield them; those that are kept are not run again."""
    asked = [
        Request(task, method, options, seed, extent.batches_of(task))
        for seed in range(extent.seeds)
        for method in extent.methods
        for task in extent.tasks
    ]
    for request in asked:
        yield from (trial for trial in trials.all(request.task, request.method) if trial.key == request.key)
    with ProcessPoolExecutor(jobs) as pool:
        left = [pool.submit(run_trial, request, device) for request in asked if not trials.has(request)]
        while left:
            done, _ = wait(left, return_when=FIRST_COMPLETED)
            left = [future for future in left if future not in done]
            for future in done:
                trials.add(future.result())
                yield future.result()


def show_curve(trial: Trial) -> None:
    """Print a trial, and its accuracy after every hundred batches."""
    console.print(line(trial), soft_wrap=True)
    variant = best_variant(trial)
    shown = [
        f"{p.batches}: {p.accuracy(variant):.3f}" for p in trial.points if p.batches in (20, 60) or p.batches % 100 == 0
    ]
    console.print("  " + ", ".join(shown), soft_wrap=True)


def available(names: Sequence[str]) -> list[str]:
    """Return the tasks whose data can be had here, and say what is the matter with the others."""
    found = []
    for name in names:
        kind = long_task(name)
        try:
            FleetData.of(kind.load(), kind.partition)
        except (ValueError, OSError) as error:
            console.print(f"[bold yellow]left out[/]: {name}: {error}", soft_wrap=True)
        else:
            found.append(name)
    return found


def parsed(options: Sequence[str]) -> dict[str, float]:
    """Return options of the form NAME=VALUE.

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
    task: Annotated[list[str] | None, typer.Option(help="Tasks; all of the benchmark unless given.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help=f"Methods of {', '.join(METHODS)}; all unless given.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of the trials of full length.", min=1)] = 3,
    batches: Annotated[int | None, typer.Option(help="Batches of each device, if not the task's.", min=1)] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER, several times: run trials with these options alone, and report nothing."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Trials at once; each takes one core.", min=1)] = 2,
    hours: Annotated[float, typer.Option(help="Begin no trial after so many.")] = 1e6,
    device: Annotated[str, typer.Option(help="Where trials are trained, such as cuda.")] = "cpu",
    folder: Annotated[Path, typer.Option(help="Where trials are kept.")] = Path("runs/long"),
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing; report what has been run so far.")] = False,
) -> None:
    """Run what is missing, and write JSON, tables and a plot to benchmarks/results."""
    methods = method or list(METHODS)
    for name in methods:
        if name not in METHODS:
            raise typer.BadParameter(f"method {name!r} is unknown; known are {', '.join(METHODS)}")
    extent = Extent(folder, available(task or list(LONG_TASKS)), methods, seeds, batches)
    if option:
        own = Extent(folder / "own", extent.tasks, methods, seeds, batches)
        for trial in run_given(own, Trials(own), parsed(option), jobs, device):
            show_curve(trial)
        return
    trials = Trials(extent)
    if not stored:
        run_all(extent, trials, jobs, device, time.monotonic() + 3600 * hours)
    for name in extent.tasks:
        for of_method in methods:
            for trial in trials.all(name, of_method):
                show_curve(trial)
    console.print_json(json.dumps({}))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
