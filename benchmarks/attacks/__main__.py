"""What bad devices can do: eight devices, none, one or two of them bad, every aggregation rule, Flower's strategies.

The product's own optimizer trains, and the coordinator's own state machine combines. Trials are kept, and the benchmark
goes on where it was stopped.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.attacks import flower
from benchmarks.attacks.attacks import NONE
from benchmarks.attacks.data import BATCH, DEVICES, TASKS
from benchmarks.attacks.ours import STEPS
from benchmarks.attacks.plots import plot_attacks
from benchmarks.attacks.report import headline, means, summary, tables
from benchmarks.attacks.trials import FLOWER, Case, Trial, cases, run
from benchmarks.shared.record_store import RecordStore
from benchmarks.shared.results import FOLDER, save_results

console = Console(highlight=False)


def main(
    methods: Annotated[list[str] | None, typer.Option(help="Rules and strategies; all unless given.")] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="Tasks; all unless given.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of the recommended rule and of the mean.", min=1)] = 3,
    other_seeds: Annotated[int, typer.Option(help="Seeds of all else.", min=1)] = 1,
    jobs: Annotated[int, typer.Option(help="Trials at once; each takes one core.", min=1)] = 2,
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing; report what has been run so far.")] = False,
    folder: Annotated[Path, typer.Option(help="Where trials are kept.")] = Path("runs/attacks"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Digits, a third of the steps, one seed, five methods; writes no results.")
    ] = False,
) -> None:
    """Compare all rules under all attacks; write JSON, a table and a plot to benchmarks/results."""
    if quick:
        folder, seeds, tasks = folder / "quick", 1, tasks or ["digits"]
        methods = methods or ["mean", "clip", "history", "FedAvg", "Krum"]
    for task in tasks or ():
        if task not in TASKS:
            console.print(f"[bold red]error[/]: {task!r} is unknown; known are {', '.join(TASKS)}")
            raise typer.Exit(2)
    wanted = [
        case
        for case in cases(seeds, other_seeds, tuple(tasks or TASKS))
        if (methods is None or case.method in methods) and not (quick and case.spread == "skewed")
    ]
    for method in methods or ():
        if not any(case.method == method for case in wanted):
            known = dict.fromkeys(case.method for case in cases(1))
            console.print(f"[bold red]error[/]: {method!r} is unknown; known are {', '.join(known)}")
            raise typer.Exit(2)
    store = RecordStore(folder / "trials.jsonl", Trial)
    rates: dict[str, float] = {}
    with ProcessPoolExecutor(jobs) as pool:
        if not stored:
            if any(case.method in FLOWER for case in wanted):
                rates = _flower_rates(pool, folder, sorted({case.task for case in wanted}))
            missing = [case for case in wanted if store.get(case) is None]
            asked = {pool.submit(run, case, rates.get(case.task, 0.0), is_short=quick): case for case in missing}
            for number, done in enumerate(as_completed(asked), start=1):
                store.add(done.result())
                if number % 20 == 0 or number == len(asked):
                    console.print(f"[cyan]{number} of {len(asked)} trials done[/]")
    trials = [trial for case in wanted if (trial := store.get(case)) is not None]
    found = means(trials)
    console.print(tables(found), markup=False, soft_wrap=True)
    figures = headline(found)
    console.print_json(json.dumps(figures))
    if quick:
        return
    data = {
        "devices": DEVICES,
        "batch": BATCH,
        "steps": STEPS,
        "trials": {"run": len(trials), "wanted": len(wanted)},
        "seeds": _seeds(trials),
        "flower": {"rounds": flower.ROUNDS, "local_steps": flower.LOCAL_STEPS, "rates": rates or _kept(folder)},
        "worst": summary(found),
        "accuracy": {"; ".join(map(str, group)): round(value, 2) for group, value in found.items()},
        "seconds": round(sum(trial.seconds for trial in trials)),
    }
    path = save_results("attacks", figures, data, "scikit-learn")
    (FOLDER / "attacks.md").write_text(
        "# Bad devices\n\nAccuracy in percent, means over the seeds; with one bad device of eight, and with two.\n\n"
        + tables(found)
    )
    plot_attacks(FOLDER / "attacks.png", found)
    console.print(f"written: {path}, the table and the plot beside it")


def _flower_rates(pool: ProcessPoolExecutor, folder: Path, tasks: Iterable[str]) -> dict[str, float]:
    """Return the learning rate for FedAvg of each task that is best without an attack, on seed 0."""
    known = _kept(folder)
    for task in tasks:
        if task in known:
            continue
        case = Case(task, "alike", "FedAvg", NONE.name, 0, 0)
        results = pool.map(run, [case] * len(flower.RATES), flower.RATES)
        best = max(zip(results, flower.RATES, strict=True), key=lambda found: found[0].accuracy)
        known[task] = best[1]
        (folder / "rates.json").write_text(json.dumps(known))
    return known


def _kept(folder: Path) -> dict[str, float]:
    path = folder / "rates.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _seeds(trials: Iterable[Trial]) -> dict[str, float]:
    """Return how many seeds each method's cases have in the mean."""
    counts: dict[str, dict[tuple[str, str, str, int], int]] = defaultdict(lambda: defaultdict(int))
    for t in trials:
        counts[t.method][t.task, t.spread, t.attack, t.bad] += 1
    return {method: round(mean(of.values()), 2) for method, of in counts.items()}


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
