"""Seconds to a target accuracy on a fleet of containers at three link speeds: EdgeNewton, and Flower's FedAvg.

Both run on the same SuperLink, SuperNodes, links, partitions, batches and initial weights of docker/up, in turn. Time
goes from `flwr run` to the target: for EdgeNewton to the commit of the step whose evaluation by the devices, on their
own held-out samples, reached it; for FedAvg to the end of the round that did, tried by the server at no cost. FedAvg
has the local steps and the rate that take it the fewest rounds (tuning.py). EdgeNewton has what the
codecs' benchmark recommends for thin links (no curvature is sent, and int8), and beside it the default estimator with
bf16. It goes on where it was stopped.
"""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from rich.console import Console

from benchmarks.fleet.goal import DEVICES, TARGET
from benchmarks.shared.ports import free_port
from benchmarks.shared.results import FOLDER, markdown_table, save_results
from benchmarks.shared.watched_training import WatchedTraining
from coordinator.telemetry.watch import follow

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCKER = Path(__file__).resolve().parents[2] / "docker"
APP = Path(__file__).with_name("fedavg_app")
PROJECT = "edgenewton-benchmark"
SPEEDS = (5, 20, 100)
OURS, DEFAULT, THEIRS = "EdgeNewton: soap, int8", "EdgeNewton: kfac, bf16", "FedAvg"
METHODS = (OURS, DEFAULT, THEIRS)
RUN_CONFIG = {OURS: "curvature='soap' codec='int8'", DEFAULT: "codec='bf16'"}
STEPS = 40
"""Of EdgeNewton, which needs some 20 to the target."""
FEDAVG = "lr=0.1 local-steps=100 rounds=15"
_DEADLINE_S = 900

console = Console(highlight=False)


@dataclass(frozen=True)
class Run:
    """One training."""

    method: str
    mbit_s: int
    seed: int
    seconds: float | None
    """From `flwr run` to the target; None if it was not reached."""
    seconds_of_rounds: float | None
    """From the beginning of the first round to the target."""
    exchanges: int | None
    """Batches of ours, rounds of FedAvg, to the target."""
    megabytes_each_way: float | None
    """Of a device, model or gradients alone; for FedAvg counted from the model's size."""
    curve: list[tuple[float, float]]
    """Seconds, and the accuracy then."""


class Fleet:
    """A fleet whose links all have one speed."""

    def __init__(self, folder: Path, mbit_s: int) -> None:
        self.mbit_s = mbit_s
        links = folder / "links.csv"
        links.write_text(f"up_mbit_s,down_mbit_s,delay_ms\n{mbit_s},{mbit_s},\n")
        self.coordinator = f"127.0.0.1:{free_port()}"
        ports = {"SUPERLINK_PORT": free_port(), "PAGE_PORT": free_port(), "COORDINATOR_PORT": self.coordinator[10:]}
        self._environment = os.environ | {name: str(port) for name, port in ports.items()}
        self._environment |= {"COMPOSE_PROJECT_NAME": PROJECT, "DEVICES": str(DEVICES), "LINKS": str(links)}
        self._environment |= {"REST_PORT": "28101", "GRPC_PORT": "29101"}

    def script(self, name: str, *arguments: str, stdin: bytes | None = None) -> str:
        """Run a script of docker/; return what it printed.

        Raises:
            RuntimeError: it failed; the text is what it printed.

        """
        done = subprocess.run(
            [DOCKER / name, *arguments],
            env=self._environment,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_DEADLINE_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"docker/{name} failed:\n{done.stdout.decode()}")
        return done.stdout.decode()

    def on_superlink(self, command: str, stdin: bytes | None = None) -> str:
        """Run a shell command in the SuperLink's container; return what it printed."""
        return self.script("compose", "exec", "-T", "superlink", "sh", "-c", command, stdin=stdin)

    def ours(self, method: str, seed: int) -> Run:
        """Train with EdgeNewton."""
        began = time.time()
        settings = f"devices={DEVICES} coordinator='coordinator:50051' output='/tmp/run' rounds=1 steps={STEPS}"
        settings += f" evaluate-every=1 seed={seed} {RUN_CONFIG[method]}"
        log = self.on_superlink(f'exec flower-run -c "{settings}"')
        training, curve, opened = WatchedTraining(), [], None
        for event in follow(self.coordinator):
            if event.time_s < began:
                continue
            opened = event.time_s if opened is None else opened
            training.apply(event)
            if event.WhichOneof("event") == "step" and event.step.HasField("evaluation"):
                curve.append((event.time_s - began, training.accuracy[event.step.step]))
            if training.statistics.phase in ("ended", "aborted"):
                break
        if opened is None or training.statistics.phase != "ended":
            raise RuntimeError(
                f"EdgeNewton's training {training.statistics.phase}: {training.statistics.reason}\n{log}"
            )
        step = next((step for step, accuracy in sorted(training.accuracy.items()) if accuracy >= TARGET), None)
        if step is None:
            return Run(method, self.mbit_s, seed, None, None, None, None, curve)
        seconds = next(seconds for seconds, accuracy in curve if accuracy >= TARGET)
        megabytes = training.traffic[step].sent / 1e6 if step in training.traffic else None
        return Run(method, self.mbit_s, seed, seconds, seconds - (opened - began), step, megabytes, curve)

    def fedavg(self, seed: int) -> Run:
        """Train with Flower's FedAvg."""
        files = subprocess.run(["tar", "-C", APP, "-c", "."], capture_output=True, check=True).stdout
        self.on_superlink("rm -rf /tmp/fedavg && mkdir /tmp/fedavg && tar -x -C /tmp/fedavg", stdin=files)
        began = time.time()
        settings = f"seed={seed} devices={DEVICES} target={TARGET} output='/tmp/fedavg.json' {FEDAVG}"
        log = self.on_superlink(f'rm -f /tmp/fedavg.json; APP=/tmp/fedavg exec flower-run -c "{settings}"')
        try:
            progress: list[dict[str, Any]] = json.loads(self.on_superlink("cat /tmp/fedavg.json"))
        except RuntimeError:
            raise RuntimeError(f"FedAvg failed:\n{log}") from None
        curve = [(entry["time_s"] - began, entry["accuracy"]) for entry in progress]
        last = progress[-1]
        if last["accuracy"] < TARGET:
            return Run(THEIRS, self.mbit_s, seed, None, None, None, None, curve)
        seconds = curve[-1][0]
        megabytes = last["round"] * _model_bytes() / 1e6
        return Run(THEIRS, self.mbit_s, seed, seconds, seconds - curve[0][0], last["round"], megabytes, curve)


@contextmanager
def running_fleet(folder: Path, mbit_s: int) -> Iterator[Fleet]:
    """Bring a fleet up for the length of a `with` block."""
    fleet = Fleet(folder, mbit_s)
    try:
        fleet.script("up")
        yield fleet
    finally:
        fleet.script("down", "--volumes")


def _model_bytes() -> int:
    from edge_client.tasks import load_task

    return sum(tensor.numel() * tensor.element_size() for tensor in load_task("digits").model().state_dict().values())


def _load(path: Path) -> list[Run]:
    return [Run(**entry) for entry in json.loads(path.read_text())] if path.exists() else []


def main(
    seeds: Annotated[int, typer.Option(help="Trainings of each method at each speed.", min=1)] = 3,
    speed: Annotated[list[int] | None, typer.Option(help="Mbit/s of every link, up and down; 5, 20 and 100.")] = None,
    folder: Annotated[Path, typer.Option(help="Where finished trainings are kept.")] = Path("runs/fleet-benchmark"),
    save: Annotated[bool, typer.Option(help="Write results and plot.")] = True,
) -> None:
    """Measure what is not measured yet, and compare."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "runs.json"
    runs = _load(kept)
    for mbit_s in speed or SPEEDS:
        done = {(run.method, run.seed) for run in runs if run.mbit_s == mbit_s}
        wanted = [(method, seed) for seed in range(seeds) for method in METHODS if (method, seed) not in done]
        if not wanted:
            continue
        with running_fleet(folder, mbit_s) as fleet:
            for method, seed in wanted:
                run = fleet.fedavg(seed) if method == THEIRS else fleet.ours(method, seed)
                runs.append(run)
                kept.write_text(json.dumps([asdict(run) for run in runs]))
                console.print(f"{mbit_s:3} Mbit/s, seed {seed}, {method}: {run.seconds} s, {run.exchanges} exchanges")
    table = markdown_table(
        [
            "link",
            "method",
            "runs",
            "seconds to 97%",
            "of these in rounds",
            "batches or rounds",
            "MB each way",
            "at the end",
        ],
        [_row(runs, mbit_s, method) for mbit_s in SPEEDS for method in METHODS],
    )
    console.print(table)
    headline = {
        f"{name}_{mbit_s}mbit": round(_median(runs, mbit_s, THEIRS) / _median(runs, mbit_s, method), 2)
        for name, method in (("speedup", OURS), ("speedup_kfac", DEFAULT))
        for mbit_s in SPEEDS
        if any(run.mbit_s == mbit_s for run in runs)
    }
    console.print(headline)
    if save:
        figures = {"edgenewton": RUN_CONFIG, "fedavg": FEDAVG, "target": TARGET, "devices": DEVICES}
        console.print(f"{save_results('fleet', headline, figures | {'runs': [asdict(run) for run in runs]})}")
        (FOLDER / "fleet.md").write_text(table + "\n")
        _plot(runs)


def _of(runs: list[Run], mbit_s: int, method: str) -> list[Run]:
    return [run for run in runs if run.mbit_s == mbit_s and run.method == method]


def _median(runs: list[Run], mbit_s: int, method: str) -> float:
    """Return the median of the seconds to the target; infinite where most seeds did not reach it."""
    seconds = [float("inf") if run.seconds is None else run.seconds for run in _of(runs, mbit_s, method)]
    return statistics.median(seconds) if seconds else float("nan")


def _row(runs: list[Run], mbit_s: int, method: str) -> list[Any]:
    of = [run for run in _of(runs, mbit_s, method) if run.seconds is not None]
    if not of:
        return [f"{mbit_s} Mbit/s", method, 0, None, None, None, None, None]
    seconds = sorted(run.seconds or 0.0 for run in of)
    return [
        f"{mbit_s} Mbit/s",
        method,
        len(of),
        f"{statistics.median(seconds):.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})",
        f"{statistics.median(run.seconds_of_rounds or 0.0 for run in of):.1f}",
        f"{statistics.median(run.exchanges or 0 for run in of):g}",
        f"{statistics.median(run.megabytes_each_way or 0.0 for run in of):.2f}",
        f"{statistics.median(run.curve[-1][1] for run in of):.1%}",
    ]


def _plot(runs: list[Run]) -> None:
    figure, axes = plt.subplots(1, len(SPEEDS), figsize=(12, 3.8), dpi=110, sharey=True)
    for place, mbit_s in zip(axes, SPEEDS, strict=True):
        for method, colour in zip(METHODS, ("#0b6e4f", "#6fb98f", "#b5651d"), strict=True):
            for number, run in enumerate(_of(runs, mbit_s, method)):
                place.plot(*zip(*run.curve, strict=True), color=colour, alpha=0.8, label="" if number else method)
        place.axhline(TARGET, color="0.5", linewidth=0.8, linestyle="--")
        place.set(title=f"{mbit_s} Mbit/s", xlabel="seconds since flwr run", xlim=(0, None))
        place.grid(alpha=0.25)
    axes[0].set_ylabel("accuracy on held-out digits")
    axes[0].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(FOLDER / "fleet.png")
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
