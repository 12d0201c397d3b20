"""The demo: four devices train a digit recogniser together through the coordinator, and then recognise with it."""

import contextlib
import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import matplotlib as mpl
import torch
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from benchmarks.private_flower import flower_command, free_port, private_flower
from benchmarks.union_batch import batches_to, train_union
from coordinator.watch import SessionView, follow, megabytes
from edge_client.inference import Artefact
from edge_client.settings import TrainSettings
from edge_client.tasks.digits import DigitsTask

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SAMPLES = 10

console = Console(highlight=False)


@dataclass(frozen=True)
class Baseline:
    """Plain synchronous SGD with momentum, at its best learning rate."""

    lr: float
    batches_to_target: int | None
    accuracies: list[float]


class DemoFailedError(RuntimeError):
    """The demo cannot go on; the text says why."""


def tuned_sgd(settings: TrainSettings, devices: int, steps: int, target: float) -> Baseline:
    """Return SGD with momentum 0.9 at the learning rate that reaches the target first."""
    settings = settings.model_copy(update={"steps": steps})
    trials = []
    for lr in LEARNING_RATES:
        _, accuracies = train_union(
            settings, devices, lambda model, lr=lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        )
        trials.append(Baseline(lr, batches_to(target, accuracies), accuracies))
    return min(trials, key=lambda trial: (trial.batches_to_target or math.inf, -trial.accuracies[-1]))


class Screen:
    """What the person in front of it sees while the devices train."""

    def __init__(self) -> None:
        self.doing = "starting"
        self.view = SessionView()
        self.began = time.monotonic()

    def __rich__(self) -> RenderableType:
        head = f"[bold]EdgeNewton demo[/]  {time.monotonic() - self.began:5.1f} s  [cyan]{self.doing}[/]"
        return Group(head, self.view) if self.view.devices else Group(head)


def watch(address: str, screen: Screen, over: threading.Event) -> None:
    """Feed the screen with the coordinator's events, from whenever it begins to listen until the run is over."""
    while not over.is_set():
        with contextlib.suppress(grpc.RpcError):
            for event in follow(address):
                screen.view.apply(event)
                if screen.view.phase == "training":
                    screen.doing = f"four devices train together ({screen.view.session})"
                elif screen.view.phase == "ended":
                    screen.doing = "the devices evaluate the model and the ServerApp writes a checkpoint"
            return
        over.wait(0.2)


@contextlib.contextmanager
def watching(address: str, screen: Screen) -> Iterator[None]:
    """Watch for the length of a `with` block."""
    over = threading.Event()
    thread = threading.Thread(target=watch, args=(address, screen, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


def run_flower(output: Path, settings: dict[str, object], devices: int, screen: Screen, deadline_s: float) -> None:
    """Train through Flower's simulation engine.

    Raises:
        DemoFailedError: the run failed, or took longer than `deadline_s`.

    """
    log_path = output / "flwr.log"
    with private_flower(output / "flower") as flower:
        screen.doing = "Flower's simulation engine starts four devices (20 to 40 s)"
        process = flower.run(settings, devices)
        timer = threading.Timer(deadline_s, process.kill)
        timer.start()
        with log_path.open("w") as log, contextlib.ExitStack() as stack:
            stack.callback(timer.cancel)
            for line in process.stdout or ():
                log.write(line)
        code = process.wait()
    if code or not (output / "history.json").exists():
        tail = "".join(log_path.read_text().splitlines(keepends=True)[-15:])
        raise DemoFailedError(f"the Flower run failed (exit status {code}); {log_path} ends with:\n{tail}")


def save_samples(folder: Path) -> list[Path]:
    """Write held-out digits as PNG and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"digit-{number}.png" for number in range(SAMPLES)]
    for number, path in enumerate(paths):
        DigitsTask().save_sample(number, path)
    return paths


def plot(path: Path, view: SessionView, baseline: Baseline, target: float, devices: int) -> None:
    """Draw accuracy against batches, ours and the baseline's."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150)
    ours = sorted(view.accuracy.items())
    axes.plot(*zip(*ours, strict=True), color="#0b6e4f", linewidth=2.2, label="EdgeNewton (K-FAC)")
    batches = range(1, len(baseline.accuracies) + 1)
    label = f"synchronous SGD with momentum, tuned (lr {baseline.lr:g})"
    axes.plot(batches, baseline.accuracies, color="#b5651d", linewidth=1.6, label=label)
    axes.axhline(target, color="0.5", linewidth=0.8, linestyle="--")
    axes.text(len(baseline.accuracies), target - 0.012, f"{target:.0%}", ha="right", va="top", color="0.4")
    axes.set(
        xlabel=f"batches trained by each of {devices} devices",
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


def summarise(
    view: SessionView, history: dict[str, Any], baseline: Baseline, target: float, devices: int
) -> dict[str, Any]:
    """Return the figures of `summary.json`."""
    last = history["rounds"][-1]
    view.accuracy[last["step"]] = last["evaluate"]["accuracy"]
    reached = next((batches for batches in sorted(view.accuracy) if view.accuracy[batches] >= target), None)
    at_target = view.traffic.get(reached) if reached is not None else None
    states = view.devices.values()
    return {
        "task": "digits",
        "devices": devices,
        "target": target,
        "accuracy": last["evaluate"]["accuracy"],
        "batches": last["step"],
        "batches_to_target": reached,
        "bytes_sent_per_device": round(sum(state.sent_before + state.sent for state in states) / devices),
        "bytes_received_per_device": round(sum(state.received_before + state.received for state in states) / devices),
        "bytes_sent_per_device_to_target": round(at_target.sent) if at_target else None,
        "bytes_received_per_device_to_target": round(at_target.received) if at_target else None,
        "seconds": round(max(view.seconds.values()), 2),
        "seconds_to_target": round(view.seconds[reached], 2) if reached in view.seconds else None,
        "baseline": "synchronous SGD with momentum 0.9, learning rate tuned",
        "baseline_lr": baseline.lr,
        "baseline_batches_to_target": baseline.batches_to_target,
        "baseline_accuracy": baseline.accuracies[-1],
        "baseline_batches": len(baseline.accuracies),
    }


def print_summary(summary: dict[str, Any], output: Path) -> None:
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
    ours.add_row("plot", str(output / "accuracy.png"))
    ours.add_row("figures", str(output / "summary.json"))
    ours.add_row("model", str(output / "model.pt"))
    console.print()
    console.print(ours)


def main(
    output: Annotated[Path, typer.Option(help="Where results go.")] = Path("runs/demo"),
    devices: Annotated[int, typer.Option(help="Devices that train together.", min=1, max=6)] = 4,
    steps: Annotated[int, typer.Option(help="Batches that each device trains.", min=2)] = 30,
    baseline_steps: Annotated[int, typer.Option(help="The same for the baseline.", min=2)] = 150,
    target: Annotated[float, typer.Option(help="Accuracy to reach.")] = 0.97,
    seed: Annotated[int, typer.Option(help="Of weights, partition and batches.")] = 0,
    deadline_s: Annotated[float, typer.Option(help="The Flower run is given up after so many seconds.")] = 300.0,
) -> None:
    """Train digits on four devices through Flower and the coordinator, beside tuned SGD, and recognise ten digits."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(1)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    screen = Screen()
    port = free_port()
    train_settings = TrainSettings(seed=seed)
    run_config: dict[str, object] = {
        "devices": devices,
        "steps": steps,
        "rounds": min(3, steps),
        "seed": seed,
        "evaluate-every": 1,
        "output": output.resolve(),
        "coordinator-port": port,
    }
    try:
        with Live(screen, console=console, refresh_per_second=8) as live:
            screen.doing = f"tuning the baseline: SGD with momentum at {len(LEARNING_RATES)} learning rates"
            baseline = tuned_sgd(train_settings, devices, baseline_steps, target)
            with watching(f"127.0.0.1:{port}", screen):
                run_flower(output, run_config, devices, screen, deadline_s)
            screen.doing = "done"
            live.refresh()
        history = json.loads((output / "history.json").read_text())
        summary = summarise(screen.view, history, baseline, target, devices)
        plot(output / "accuracy.png", screen.view, baseline, target, devices)
    except (DemoFailedError, RuntimeError, OSError) as error:
        console.print(f"[bold red]error[/]: {error}", markup=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        raise typer.Exit(130) from None
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    Artefact.from_checkpoint(output / f"round-{len(history['rounds'])}.safetensors").save(output / "model.pt")
    print_summary(summary, output)
    paths = save_samples(output / "samples")
    console.print(f"\n[bold]$ edge-client predict {output}/model.pt {output}/samples/*.png[/]")
    sys.stdout.flush()
    code = subprocess.run([flower_command("edge-client"), "predict", output / "model.pt", *paths], check=False)
    raise typer.Exit(code.returncode)


if __name__ == "__main__":
    typer.run(main)
