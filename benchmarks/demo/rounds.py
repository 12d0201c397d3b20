"""What the demo says and leaves at its end: the run's history checked, figures, and a plot."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.shared.watched_training import WatchedTraining
from coordinator.telemetry.terminal import megabytes


@dataclass(frozen=True)
class Baseline:
    """Plain synchronous SGD with momentum, at its best learning rate."""

    lr: float
    batches_to_target: int | None
    accuracies: list[float]


class DemoFailedError(RuntimeError):
    """The demo cannot go on; the text says why."""


def read_rounds(path: Path, rounds: int) -> list[dict[str, Any]]:
    """Return the metrics of each round from the `history.json` of a Flower run.

    Only they tell a success: Flower's exit status is 0 for a failed run too, and the ServerApp writes its history
    whatever happens.

    Raises:
        DemoFailedError: there are not `rounds` rounds that were trained and evaluated.

    """
    try:
        history = json.loads(path.read_text())["rounds"]
    except FileNotFoundError:
        history = []
    trained, evaluated = len(history), sum("accuracy" in entry.get("evaluate", {}) for entry in history)
    if not trained == evaluated == rounds:
        raise DemoFailedError(
            f"the Flower run failed: of {rounds} rounds {trained} were trained and {evaluated} evaluated"
        )
    return list(history)


def plot(path: Path, training: WatchedTraining, baseline: Baseline, target: float) -> None:
    """Draw accuracy against batches, ours and the baseline's."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150)
    ours = sorted(training.accuracy.items())
    axes.plot(*zip(*ours, strict=True), color="#0b6e4f", linewidth=2.2, label="EdgeNewton (K-FAC)")
    batches = range(1, len(baseline.accuracies) + 1)
    label = f"synchronous SGD with momentum, tuned (lr {baseline.lr:g})"
    axes.plot(batches, baseline.accuracies, color="#b5651d", linewidth=1.6, label=label)
    axes.axhline(target, color="0.5", linewidth=0.8, linestyle="--")
    axes.text(len(baseline.accuracies), target - 0.012, f"{target:.0%}", ha="right", va="top", color="0.4")
    axes.set(
        xlabel=f"batches trained by each of {len(training.statistics.devices)} devices",
        ylabel="accuracy on held-out digits",
        ylim=(0, 1.02),
        xlim=(0, len(baseline.accuracies)),
        title="Handwritten digits, label-skewed over the devices",
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def summarise(training: WatchedTraining, last: dict[str, Any], baseline: Baseline, target: float) -> dict[str, Any]:
    """Return the figures of `summary.json`, from the whole run and its last round's metrics."""
    reached = next((batches for batches in sorted(training.accuracy) if training.accuracy[batches] >= target), None)
    at_target = training.traffic.get(reached) if reached is not None else None
    statistics, devices = training.statistics, len(training.statistics.devices)
    return {
        "task": "digits",
        "devices": devices,
        "target": target,
        "accuracy": last["evaluate"]["accuracy"],
        "batches": last["step"],
        "batches_to_target": reached,
        "bytes_sent_per_device": round(statistics.received / devices),
        "bytes_received_per_device": round(statistics.sent / devices),
        "bytes_sent_per_device_to_target": round(at_target.sent) if at_target else None,
        "bytes_received_per_device_to_target": round(at_target.received) if at_target else None,
        "seconds": round(max(training.seconds.values()), 2),
        "seconds_to_target": round(training.seconds[reached], 2) if reached in training.seconds else None,
        "baseline": "synchronous SGD with momentum 0.9, learning rate tuned",
        "baseline_lr": baseline.lr,
        "baseline_batches_to_target": baseline.batches_to_target,
        "baseline_accuracy": baseline.accuracies[-1],
        "baseline_batches": len(baseline.accuracies),
    }


def print_summary(console: Console, summary: dict[str, Any], output: Path) -> None:
    """Say how it went."""
    target, reached = f"{summary['target']:.0%}", summary["batches_to_target"]
    ours, theirs = Table(show_header=False, box=None, padding=(0, 2)), summary["baseline_batches_to_target"]
    ours.add_row("test accuracy", f"[bold]{summary['accuracy']:.1%}[/] after {summary['batches']} batches per device")
    ours.add_row(
        f"to {target}",
        f"[bold]{reached} batches[/] per device, {summary['seconds_to_target']} s, sent "
        f"{megabytes(summary['bytes_sent_per_device_to_target'] or 0)} and received "
        f"{megabytes(summary['bytes_received_per_device_to_target'] or 0)} per device"
        if reached is not None
        else f"not reached within {summary['batches']} batches",
    )
    ours.add_row(
        "tuned SGD",
        f"{theirs} batches to {target}" if theirs else f"not within {summary['baseline_batches']} batches",
    )
    ours.add_row("training took", f"{summary['seconds']} s")
    ours.add_row("plot", escape(str(output / "accuracy.png")))
    ours.add_row("figures", escape(str(output / "summary.json")))
    ours.add_row("model", escape(str(output / "model.pt")))
    console.print()
    console.print(ours)
