"""The demo: four devices train a digit recogniser together through the coordinator, and then recognise with it."""

import contextlib
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from edgenewton.common.console import LineConsole
from rich.live import Live
from rich.text import Text
from torch import nn

from benchmarks.demo.output_folder import FolderError, output_folder
from benchmarks.demo.rounds import Baseline, DemoFailedError, plot, print_summary, read_rounds, summarise
from benchmarks.demo.screen import Screen, watching
from benchmarks.shared.private_flower import RAY_DID_NOT_START, FlowerError, flower_command, private_flower
from benchmarks.shared.union_batch import OptimizerFactory, batches_to, train_union
from edge_client.inference import Artefact
from edge_client.tasks.digits import DigitsTask
from edge_client.training.settings import TrainSettings

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SAMPLES = 10
RAY_STARTS = 3
RESULTS = (
    "accuracy.png",
    "flwr.log",
    "history.json",
    "model.pt",
    "round-*.safetensors",
    "samples",
    "summary.json",
    "superlink.log",
)
"""What the demo writes to its folder, and deletes there when it begins."""

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_ADDRESS = re.compile(r"coordinator listens on (\S+:\d+)")
_LOG_TAIL = 40

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
console = LineConsole(markup=True)


def tuned_sgd(settings: TrainSettings, devices: int, steps: int, target: float) -> Baseline:
    """Return SGD with momentum 0.9 at the learning rate that reaches the target first."""
    settings = settings.model_copy(update={"steps": steps})
    trials = []
    for lr in LEARNING_RATES:
        _, accuracies = train_union(settings, devices, _sgd(lr))
        trials.append(Baseline(lr, batches_to(target, accuracies), accuracies))
    return min(trials, key=lambda trial: (trial.batches_to_target or math.inf, -trial.accuracies[-1]))


def _sgd(lr: float) -> OptimizerFactory:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    return make


def run_flower(
    output: Path, settings: dict[str, object], devices: int, screen: Screen, deadline_s: float
) -> dict[str, Any]:
    """Train through Flower's simulation engine, and return the metrics of the last round.

    Raises:
        DemoFailedError: the run failed, or took longer than `deadline_s`.
        FlowerError: Flower's processes could not be started or ended.

    """
    screen.doing = f"Flower's simulation engine starts {devices} devices (20 to 40 s)"
    deadline = time.monotonic() + deadline_s
    # The watching ends last: the end of Flower ends its stream.
    with contextlib.ExitStack() as watchers, private_flower(output) as flower:
        for _ in range(RAY_STARTS):
            lines = _follow_run(flower.run(settings, devices), output / "flwr.log", watchers, screen, deadline)
            if not any(RAY_DID_NOT_START in line for line in lines):
                break
            screen.doing = "Ray, under Flower's simulation engine, did not start in its time; once more"
    try:
        if time.monotonic() >= deadline:
            raise DemoFailedError(f"the Flower run was given up after {deadline_s:g} s (--deadline-s)")
        last = read_rounds(output / "history.json", int(str(settings["rounds"])))[-1]
        if screen.training.batches != last["step"]:
            raise DemoFailedError(f"{screen.training.batches} of {last['step']} steps were seen on the coordinator")
    except DemoFailedError as error:
        tail = "".join(lines[-_LOG_TAIL:])
        raise DemoFailedError(f"{error}; {output / 'flwr.log'} ends with:\n{tail}") from None
    # Evaluations in steps come before their update; only the round's comes after the last one.
    screen.training.add_evaluation(last["step"], last["evaluate"]["accuracy"])
    return last


def _follow_run(
    process: "subprocess.Popen[str]", log_path: Path, watchers: contextlib.ExitStack, screen: Screen, deadline: float
) -> list[str]:
    """Return the lines of a run when it has ended or was ended at its deadline; the screen watches its coordinator."""
    lines: list[str] = []
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
    timer.start()
    is_watched = False
    try:
        with log_path.open("w") as log:
            for coloured in process.stdout or ():
                lines.append(_COLOUR.sub("", coloured))
                log.write(lines[-1])
                found = _ADDRESS.search(lines[-1])
                if found and not is_watched:
                    watchers.enter_context(watching(found[1], screen))
                    is_watched = True
        process.wait()
    finally:
        timer.cancel()
    return lines


def save_samples(folder: Path) -> list[Path]:
    """Write held-out digits as PNG and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"digit-{number}.png" for number in range(SAMPLES)]
    for number, path in enumerate(paths):
        DigitsTask().save_sample(number, path)
    return paths


def train(
    output: Path, devices: int, steps: int, baseline_steps: int, target: float, seed: int, deadline_s: float
) -> None:
    """Train beside the baseline, show how it goes, and leave the results in `output`."""
    rounds = min(3, steps)
    run_config: dict[str, object] = {
        "devices": devices,
        "steps": steps,
        "rounds": rounds,
        "seed": seed,
        "cadence": "every-batch",  # the curve is one over batches
        "evaluate-every": 1,
        "output": output.resolve(),
    }
    screen = Screen()
    with Live(screen, console=console, refresh_per_second=8):
        screen.doing = f"tuning the baseline: SGD with momentum at {len(LEARNING_RATES)} learning rates"
        baseline = tuned_sgd(TrainSettings(seed=seed), devices, baseline_steps, target)
        last = run_flower(output, run_config, devices, screen, deadline_s)
        screen.doing = "done"
    summary = summarise(screen.training, last, baseline, target)
    plot(output / "accuracy.png", screen.training, baseline, target)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    Artefact.from_checkpoint(output / f"round-{rounds}.safetensors").save(output / "model.pt")
    print_summary(console, summary, output)


def recognise(output: Path) -> int:
    """Let the device's command recognise ten digits with the trained model, and return its exit status."""
    paths = save_samples(output / "samples")
    console.print(f"\n$ edge-client predict {output}/model.pt {output}/samples/*.png", style="bold", markup=False)
    sys.stdout.flush()
    command = [flower_command("edge-client"), "predict", str(output / "model.pt"), *map(str, paths)]
    return subprocess.run(command, check=False).returncode


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Where results go: an empty folder, or the demo's own.")] = Path(
        "runs/demo"
    ),
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
    try:
        with output_folder(output, "demo", RESULTS):
            train(output, devices, steps, baseline_steps, target, seed, deadline_s)
            code = recognise(output)
    except (DemoFailedError, FlowerError, FolderError, OSError) as error:
        console.print(Text.assemble(("error", "bold red"), f": {error}"), soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        raise typer.Exit(130) from None
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
