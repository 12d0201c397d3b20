"""Unlike machines in one session: who is told to heal, how far rounding takes devices apart, and what it costs.

Four devices train the label-skewed digits, each in a process of its own: one as this machine computes best, one with
another instruction set, one with two threads, one whose model runs in bfloat16 autocast. Beside them four that are
alike. The coordinator compares their weights every ten steps.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer

from benchmarks.mixed.machines import ALIKE, FLOAT32, MIXED, Machine
from benchmarks.mixed.session import COMPARED_EVERY, Outcome, run
from benchmarks.shared.results import FOLDER, markdown_table, save_results
from coordinator.session.drift import LIMIT

mpl.use("Agg")
from matplotlib import pyplot as plt

SPOILT_AT = 43


def main(
    steps: Annotated[int, typer.Option(help="Batches of each device.", min=60)] = 1_000,
    seeds: Annotated[int, typer.Option(help="Seeds of the sessions that exchange after every batch.", min=1)] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="100 batches; writes no results.")] = False,
) -> None:
    """Train with unlike and with like machines; write JSON and a plot to benchmarks/results."""
    steps = 100 if quick else steps
    with ThreadPoolExecutor(5) as pool:
        kinds = (("unlike", MIXED), ("alike", ALIKE))
        runs = [
            pool.submit(_told, name, machines, {"steps": steps, "cadence": cadence, "seed": seed})
            for cadence, count in (("every-batch", seeds), ("local-steps", 1))
            for seed in range(count)
            for name, machines in (*kinds, *([("unlike in float32", FLOAT32)] if not seed else []))
        ]
        wrong = {"steps": 60, "cadence": "every-batch", "seed": 0}
        spoilt = pool.submit(_told, "one wrong weight", MIXED, wrong, SPOILT_AT).result()
        outcomes = [of_run.result() for of_run in runs]
    print(*spoilt.heals, sep="\n")
    header = ["machines, cadence", "seed", "heals", "left out", "alignments", "largest drift", "accuracy"]
    table = markdown_table(header, [_row(outcome) for outcome in [*outcomes, spoilt]])
    print(f"\n{table}")
    unlike = [outcome for outcome in outcomes if outcome.name.startswith("unlike")]
    mixed = [outcome for outcome in outcomes if outcome.name == "unlike"]
    alike = [outcome for outcome in outcomes if outcome.name == "alike"]
    headline = {
        "heals_in_1000_steps": sum(len(outcome.heals) for outcome in unlike) * 1_000 / (steps * len(unlike)),
        "accuracy_loss_vs_like_machines": 100 * (_mean(alike) - _mean(mixed)),
        "left_out": sum(outcome.left_out for outcome in unlike),
        "wrong_weight_found": len(spoilt.heals) == 1,
    }
    print(headline)
    if not quick:
        figures = {"steps": steps, "seeds": seeds, "compared_every": COMPARED_EVERY, "table": table}
        figures["runs"] = [_figures(outcome) for outcome in [*outcomes, spoilt]]
        print(save_results("mixed", headline, figures))
        _plot(FOLDER / "mixed.png", mixed)


def _told(name: str, machines: Sequence[Machine], settings: Mapping[str, Any], spoilt_at: int = -1) -> Outcome:
    outcome = run(name, machines, settings, spoilt_at)
    print(_line(outcome), flush=True)
    return outcome


def _figures(outcome: Outcome) -> dict[str, Any]:
    """Return what is written down: of the drift its largest values alone, because the plot has the curves."""
    largest = {name: max(value for _, value in curve) for name, curve in outcome.drift.items()}
    return asdict(outcome) | {"drift": largest}


def _mean(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.accuracy for outcome in outcomes) / len(outcomes)


def _row(outcome: Outcome) -> list[Any]:
    return [
        f"{outcome.name}, {outcome.cadence}",
        outcome.seed,
        len(outcome.heals),
        outcome.left_out,
        outcome.alignments,
        f"{outcome.largest_drift:.1e}",
        f"{outcome.accuracy:.2%}",
    ]


def _line(outcome: Outcome) -> str:
    name, seed, heals, left_out, alignments, drift, accuracy = _row(outcome)
    return f"{name}, seed {seed}: {heals} heals, {left_out} left out, {alignments} aligned, drift {drift}, {accuracy}"


def _plot(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Draw how far each kind of machine is from the median over the steps."""
    figure, all_axes = plt.subplots(1, 2, figsize=(12, 4), dpi=110, sharey=True)
    for axes, cadence in zip(all_axes, ("every-batch", "local-steps"), strict=True):
        outcome = next(outcome for outcome in outcomes if outcome.cadence == cadence)
        for name, curve in outcome.drift.items():
            steps, values = zip(*curve, strict=True)
            axes.plot(steps, [max(value, 1e-12) for value in values], label=name, linewidth=1.4)
        axes.axhline(LIMIT, color="0.4", linewidth=0.9, linestyle="--", label="heals beyond")
        axes.set(yscale="log", xlabel="batches", title=cadence, ylabel="largest difference / norm")
        axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
