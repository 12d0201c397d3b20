"""Bytes to a target accuracy: every codec, with three ways to train, against tuned federated averaging.

Four devices, as threads of one process, train through a coordinator with one set of defaults; what they send and
receive is counted on their connections. The first device's model is tried after each batch; in local scope it is the
mean of all devices' models, and the bytes of the last average are counted too. Federated averaging (Flower's FedAvg and
FedAdam with 1, 5 and 20 local steps) is tuned as in the convergence benchmark. It goes on where it was stopped.
"""

import json
import math
import statistics
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import torch
import typer
from edgenewton.v1.codecs import CODEC_NUMBERS
from rich.console import Console
from torch import nn

from benchmarks.convergence.learning_tasks import DEVICES, LearningTask
from benchmarks.convergence.study import Extent, Study, study_all
from benchmarks.convergence.trials import DeviceBatches, learning_task
from benchmarks.shared.results import FOLDER, markdown_table, save_results
from coordinator.serving.server import EmbeddedCoordinator, embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import NewtonOptimizer
from edge_client.exchange import Exchange
from edge_client.exchange.remote import GradientExchange
from edge_client.sync import EveryBatch, LocalCurvature, SyncPlan

mpl.use("Agg")
from matplotlib import pyplot as plt

LABEL_SKEWED = ("digits", "autoencoder")


@dataclass(frozen=True)
class Way:
    """Which curvature is used, and what is exchanged for it."""

    curvature: str = "kfac"
    sync_every: int | None = None
    """Steps between two averages of the parameters; None where the curvature is shared."""

    def plan(self, exchange: Exchange) -> SyncPlan:
        """Return how a device synchronises."""
        return EveryBatch(exchange) if self.sync_every is None else LocalCurvature(exchange, self.sync_every)


WAYS: Mapping[str, Way] = {
    "kfac, shared": Way(),
    "kfac, local": Way(sync_every=5),
    "soap, shared": Way("soap"),
}
"""What is exchanged: gradients and curvature; gradients, and parameters every five steps; gradients alone."""
FEDERATED = ("FedAvg, 1 local", "FedAvg, 5 local", "FedAvg, 20 local")
TOLERANCE = 1.1
"""A codec may cost so many times the batches of fp32."""

console = Console(highlight=False)


@dataclass(frozen=True)
class Run:
    """One training with one seed."""

    batches: int | None
    """Of each device to the target; None if the budget was too small."""
    sent: float
    received: float


@dataclass(frozen=True)
class Result:
    """One way to train with one codec, over all seeds."""

    task: str
    way: str
    codec: str
    runs: list[Run]

    @property
    def batches(self) -> float:
        """Median of the batches to the target; infinite if most seeds did not reach it."""
        return statistics.median(math.inf if run.batches is None else run.batches for run in self.runs)

    @property
    def sent(self) -> float:
        """Median of the bytes that a device sent."""
        return statistics.median(run.sent for run in self.runs)

    @property
    def received(self) -> float:
        """Median of the bytes that a device received."""
        return statistics.median(run.received for run in self.runs)


class Training:
    """Four devices that train together until the target is reached."""

    def __init__(self, address: str, session: str, task: LearningTask, seed: int, way: Way) -> None:
        self._task = task
        self._data = DeviceBatches(task, seed)
        self._batches = self._data.step(0)
        self._models = []
        for _ in range(DEVICES):
            torch.manual_seed(seed)
            self._models.append(task.build())
        self._address, self._session, self._way = address, session, way
        self._is_over = False
        self._reached: int | None = None
        self._taken = 0
        self._stepped = threading.Barrier(DEVICES, action=self._evaluate, timeout=120)

    def run(self, budget: int) -> Run:
        """Train; return what it took."""
        self._budget = budget
        with ThreadPoolExecutor(DEVICES) as pool:
            traffic = list(pool.map(self._train, range(DEVICES)))
        sent, received = (statistics.mean(values) for values in zip(*traffic, strict=True))
        return Run(self._reached, sent, received)

    def _train(self, index: int) -> tuple[int, int]:
        exchange = GradientExchange.connect(self._address, session=self._session, device=f"device-{index}")
        try:
            optimizer = NewtonOptimizer(
                self._models[index], curvature=self._way.curvature, sync=self._way.plan(exchange)
            )
            while not self._is_over:
                inputs, targets = self._batches[index]
                optimizer.zero_grad()
                loss = self._task.loss(self._models[index](inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.report(loss.item())
                optimizer.step()
                self._stepped.wait()
            optimizer.synchronise()
        except BaseException:
            self._stepped.abort()
            raise
        finally:
            exchange.close()
        return exchange.traffic.sent, exchange.traffic.received

    def _evaluate(self) -> None:
        self._taken += 1
        self._batches = self._data.step(self._taken)
        if self._taken % self._task.evaluate_every and self._taken < self._budget:
            return
        is_shared = self._way.sync_every is None
        metric = self._task.evaluate(self._models[0] if is_shared else _mean(self._task, self._models))
        if self._task.is_reached(metric):
            self._reached = self._taken
        self._is_over = self._reached is not None or self._taken >= self._budget or not math.isfinite(metric)


@torch.no_grad()
def _mean(task: LearningTask, models: list[nn.Module]) -> nn.Module:
    mean = task.build()
    states = [model.state_dict() for model in models]
    mean.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return mean


class RunStore:
    """Runs on disk, one a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self._known = {key: Run(**run) for key, run in map(json.loads, lines)}

    def find_or_run(self, key: str, run: Callable[[], Run]) -> Run:
        """Return the run of a key; run it if it is not there."""
        if key not in self._known:
            self._known[key] = run()
            with self._path.open("a") as file:
                file.write(json.dumps([key, asdict(self._known[key])]) + "\n")
        return self._known[key]


def compare(
    coordinator: EmbeddedCoordinator, store: RunStore, task_name: str, way: str, codec: str, seeds: int, budget: int
) -> Result:
    """Train with all seeds."""
    task = learning_task(task_name)
    runs = []
    for seed in range(seeds):
        session = f"{task_name}/{way}/{codec}/{seed}/{budget}"

        def run(session: str = session, seed: int = seed) -> Run:
            settings = SessionSettings.model_validate({"devices": DEVICES, "codec": codec})
            coordinator.create_session(session, settings)
            return Training(coordinator.address, session, task, seed, WAYS[way]).run(budget)

        runs.append(store.find_or_run(session, run))
    result = Result(task_name, way, codec, runs)
    console.print(
        f"{task_name:12} {way:18} {codec:9} {result.batches:5g} batches, "
        f"{result.sent / 1e6:6.2f} MB sent, {result.received / 1e6:6.2f} MB received"
    )
    return result


def recommended(results: list[Result]) -> Result:
    """Return what sends and receives least, of what needs hardly more batches than the same way in fp32."""
    plain = {result.way: result.batches for result in results if result.codec == "fp32"}
    fitting = [r for r in results if math.isfinite(r.batches) and r.batches <= TOLERANCE * plain[r.way]]
    return min(fitting, key=lambda result: result.sent + result.received)


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="Tasks; all unless given.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds.", min=1)] = 5,
    budget: Annotated[int, typer.Option(help="Batches after which a training is given up.", min=1)] = 250,
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs/codecs"),
    quick: Annotated[bool, typer.Option("--quick", help="Digits, one seed; writes no results.")] = False,
) -> None:
    """Count the bytes; write JSON, a table and a plot to benchmarks/results."""
    seeds = 1 if quick else seeds
    chosen = tasks or (["digits"] if quick else [*LABEL_SKEWED, "keywords"])
    torch.set_num_threads(1)
    store = RunStore(folder / "runs.jsonl")
    results: list[Result] = []
    baselines: list[Study] = []
    with embedded_coordinator() as coordinator:
        for task in chosen:
            for way in WAYS:
                results += [compare(coordinator, store, task, way, codec, seeds, budget) for codec in CODEC_NUMBERS]
    for task in chosen:
        extent = Extent(folder, seeds, learning_task(task).budget, is_stored=False)
        for method in FEDERATED[2:] if quick else FEDERATED:
            baselines += study_all(extent, task, method)
    text, headline = _report(chosen, results, baselines)
    console.print(text, markup=False, soft_wrap=True)
    console.print(headline)
    if quick:
        return
    figures = {
        "results": [asdict(r) | {"median": _or_none(r.batches)} for r in results],
        "federated": [asdict(b) | {"median": _or_none(b.median)} for b in baselines],
    }
    path = save_results("codecs", headline, figures)
    (FOLDER / "codecs.md").write_text(f"# Codecs\n\n{text}")
    _plot(chosen, results, baselines)
    console.print(f"written: {path} and the table and plot beside it")


def _report(tasks: list[str], results: list[Result], baselines: list[Study]) -> tuple[str, dict[str, Any]]:
    parts = []
    headline: dict[str, Any] = {}
    for task in tasks:
        of_task = [result for result in results if result.task == task]
        best = recommended(of_task)
        federated = [b for b in baselines if b.task == task]
        rows: list[list[object]] = [
            [
                f"{way}",
                *(_cell(next(r for r in of_task if (r.way, r.codec) == (way, codec))) for codec in CODEC_NUMBERS),
            ]
            for way in WAYS
        ]
        parts.append(f"## {learning_task(task).name}\n")
        parts.append("Batches to the target, and MB that a device sends and receives until then.\n")
        parts.append(markdown_table(["", *CODEC_NUMBERS], rows) + "\n")
        rows = [
            [b.method, f"{b.median:g}" if math.isfinite(b.median) else "not reached", f"{b.bytes_each_way / 1e6:.2f}"]
            for b in federated
        ]
        parts.append(markdown_table(["federated averaging", "batches", "MB each way"], rows) + "\n")
        parts.append(f"Cheapest within {TOLERANCE - 1:.0%} of the batches of fp32: {best.way}, {best.codec}.\n")
        reached = [b.bytes_each_way for b in federated if math.isfinite(b.median)]
        each_way = (best.sent + best.received) / 2
        headline[f"cheapest_{task}"] = f"{best.way}, {best.codec}"
        headline[f"bytes_ratio_{task}"] = round(min(reached) / each_way, 2) if reached else None
    return "\n".join(parts), headline


def _cell(result: Result) -> str:
    if not math.isfinite(result.batches):
        return "not reached"
    return f"{result.batches:g}; {result.sent / 1e6:.2f}, {result.received / 1e6:.2f}"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plot(tasks: list[str], results: list[Result], baselines: list[Study]) -> None:
    figure, all_axes = plt.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 4), dpi=110, squeeze=False)
    for axes, task in zip(all_axes[0], tasks, strict=True):
        for way, colour in zip(WAYS, ("#0b6e4f", "#4a6fa5", "#b5651d"), strict=True):
            of_way = [r for r in results if (r.task, r.way) == (task, way) and math.isfinite(r.batches)]
            each_way = [(r.sent + r.received) / 2e6 for r in of_way]
            axes.loglog([r.batches for r in of_way], each_way, "o", color=colour, label=way)
            for result, height in zip(of_way, each_way, strict=True):
                axes.annotate(
                    result.codec, (result.batches, height), fontsize=7, xytext=(4, 2), textcoords="offset points"
                )
        reached = [b for b in baselines if b.task == task and math.isfinite(b.median)]
        heights = [b.bytes_each_way / 1e6 for b in reached]
        axes.loglog([b.median for b in reached], heights, "x", color="#777777", label="FedAvg, FedAdam")
        axes.set(title=learning_task(task).name, xlabel="batches to target", ylabel="MB each way")
        axes.grid(alpha=0.25, which="both")
    all_axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(FOLDER / "codecs.png")
    plt.close(figure)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
