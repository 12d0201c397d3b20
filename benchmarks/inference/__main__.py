"""Recognition: latency and throughput of ours beside MLServer and LitServe with the same model, and while training.

All servers run the same ONNX file in ONNX Runtime on one thread, and are asked by the same client. A peer is measured
with and without its batching, and counts with the better one.
"""

import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from edgenewton.inference import open_inference_pb2 as pb
from rich.console import Console

from benchmarks.inference import engines
from benchmarks.inference.load import Measured, grpc_client, http_client, measure, summary
from benchmarks.inference.peers.environment import (
    PeerUnavailableError,
    environment,
    installed_version,
    litserve,
    mlserver,
)
from benchmarks.shared.results import markdown_table, save_results
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.daemon.client import DaemonClient, DaemonError
from edge_client.inference import Artefact, Recognizer
from edge_client.inference.onnx_export import save_onnx, to_onnx
from edge_client.tasks.digits import DigitsTask
from edge_client.training.jobs import dump_weights, initial_weights
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer
from edge_client.training.work import DataRequest, TrainRequest

CLIENTS = 16
PLOT = Path(__file__).parents[2] / "docs" / "inference.png"
TARGETS = {
    "grpc_overhead_p50_ms": "at most 1",
    "throughput_ratio_vs_mlserver": "at least 2",
    "throughput_ratio_vs_litserve": "at least 2",
    "p99_training_over_idle": "at most 3",
}

console = Console(highlight=False, soft_wrap=True)
Figures = dict[str, list[Measured]]
"""What was measured, once per round: "ours, gRPC, 16 clients" and so on."""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short round, to see that it works.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds; the median counts.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.", min=0.5)] = 5.0,
    peers: Annotated[Path, typer.Option(help="Where the other servers are installed.")] = Path("runs/peers"),
    engines_only: Annotated[
        bool, typer.Option("--engines-only", help="The engines side by side; the other results stay as they are.")
    ] = False,
) -> None:
    """Measure recognition, print a table, and write benchmarks/results/inference.json and docs/inference.png."""
    if engines_only:
        engines.main(quick=quick)
        return
    if quick:
        rounds, seconds = 1, 1.5
    torch.set_num_threads(1)
    figures: Figures = {}
    versions, missing = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = train_model(folder)
        folders = {}
        for peer in ("mlserver", "litserve"):
            try:
                with console.status(f"installing {peer} in an environment of its own"):
                    folders[peer] = environment(peer, peers.absolute())
                versions[peer] = installed_version(folders[peer], peer)
            except PeerUnavailableError as error:
                missing[peer] = str(error)
                console.print(f"[yellow]{error}[/]")
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds}")
            measure_in_process(folder, seconds, figures)
            measure_ours(model, seconds, figures)
            for peer, measure_peer in (("mlserver", measure_mlserver), ("litserve", measure_litserve)):
                if peer in folders and peer not in missing:
                    try:
                        measure_peer(folders[peer], model, folder, seconds, figures)
                    except (PeerUnavailableError, RuntimeError, OSError) as error:
                        missing[peer] = str(error)
                        console.print(f"[yellow]{peer}: {error}[/]")
        measure_training(folder, rounds, 2 * seconds, figures)
    report(figures, versions, missing, engines.measure_engines(rounds, seconds), is_quick=quick)


# ---------------------------------------------------------------------- what is measured


def train_model(folder: Path) -> Path:
    """Train a digit recogniser; return its ONNX file, beside which its artefact is."""
    settings = TrainSettings(steps=60)
    trainer = Trainer(settings)
    trainer.train(settings.steps)
    with trainer.optimizer.averaged():
        artefact = Artefact.of(trainer.task, settings.task, trainer.model, settings.steps)
    artefact.save(folder / "model.pt")
    save_onnx(to_onnx(artefact, trainer.task), folder / "model.onnx")
    return folder / "model.onnx"


def pixels() -> torch.Tensor:
    """Return one sample, decoded, uint8 `[1, 8, 8]`."""
    task = DigitsTask()
    return task.decode(task.sample_image(0)).unsqueeze(0)


def measure_in_process(folder: Path, seconds: float, figures: Figures) -> None:
    """Call recognizers in this process."""
    raw = pixels().numpy()
    for engine, file in (("torch", "model.pt"), ("export", "model.pt"), ("onnx", "model.onnx")):
        recognizer = Recognizer.load(folder / file, "export" if engine == "export" else None)
        record(figures, f"in process, {engine}", time_calls(partial(recognizer.probabilities, raw), seconds))


def time_calls(call: Callable[[], object], seconds: float) -> Measured:
    """Call something for some seconds."""
    for _ in range(50):
        call()
    latencies, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call()
        latencies.append(time.perf_counter() - began)
    return summary(latencies, 1, seconds)


def measure_ours(model: Path, seconds: float, figures: Figures) -> None:
    """Ask `edge-client serve`."""
    with serving(model) as (grpc, rest):
        for clients in (1, CLIENTS):
            record(
                figures, f"ours, gRPC, {clients}", measure(grpc_client(grpc, grpc_request("digits")), clients, seconds)
            )
            http = http_client(rest, "/v2/models/digits/infer", rest_body())
            record(figures, f"ours, REST, {clients}", measure(http, clients, seconds))


def measure_mlserver(programs: Path, model: Path, folder: Path, seconds: float, figures: Figures) -> None:
    """Ask MLServer, over gRPC and REST."""
    for batch in (1, CLIENTS):
        with mlserver(programs, model, folder / f"mlserver-{batch}", batch) as (grpc, rest):
            for clients in (1, CLIENTS):
                name = f"mlserver (batch {batch}), {{}}, {clients}"
                request = grpc_client(grpc, grpc_request("digits"))
                record(figures, name.format("gRPC"), measure(request, clients, seconds))
                http = http_client(rest, "/v2/models/digits/infer", rest_body())
                record(figures, name.format("REST"), measure(http, clients, seconds))


def measure_litserve(programs: Path, model: Path, folder: Path, seconds: float, figures: Figures) -> None:
    """Ask LitServe, which speaks JSON of one's own over HTTP."""
    body = json.dumps({"raw": pixels().ravel().tolist()}).encode()
    for batch in (1, CLIENTS):
        with litserve(programs, model, folder / f"litserve-{batch}", batch) as address:
            for clients in (1, CLIENTS):
                name = f"litserve (batch {batch}), REST, {clients}"
                record(figures, name, measure(http_client(address, "/predict", body), clients, seconds))


def measure_training(folder: Path, rounds: int, seconds: float, figures: Figures) -> None:
    """Ask a daemon with one client, in turn while it trains and while it does not."""
    settings = TrainSettings(steps=1_000_000)
    with daemon(folder) as (address, socket), embedded_coordinator() as coordinator:
        client = grpc_client(address, grpc_request("model"))
        for number in range(rounds):
            record(figures, "daemon, idle", measure(client, 1, seconds, pause_s=0.002))
            coordinator.create_session(f"round-{number}", SessionSettings(devices=1))
            asked = TrainRequest(
                DataRequest(settings.flat()),
                coordinator=coordinator.address,
                session=f"round-{number}",
                device="device",
                first_step=0,
                steps=settings.steps,
                weights=dump_weights(initial_weights(settings)),
            )
            with training(socket, asked) as steps:
                before = steps()
                record(figures, "daemon, training", measure(client, 1, seconds, pause_s=0.002))
                console.print(f"  it trained {steps() - before} steps meanwhile")
                coordinator.abort(f"round-{number}", "the benchmark has seen enough")


def grpc_request(model: str) -> bytes:
    """Return one sample as a request of the Open Inference Protocol, ready to be sent."""
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="raw", datatype="UINT8", shape=[1, 8, 8])
    request.outputs.add(name="probabilities")
    request.raw_input_contents.append(pixels().numpy().tobytes())
    return bytes(request.SerializeToString())


def rest_body() -> bytes:
    """Return one sample as the protocol's JSON."""
    tensor = {"name": "raw", "datatype": "UINT8", "shape": [1, 8, 8], "data": pixels().ravel().tolist()}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()


def record(figures: Figures, name: str, measured: Measured) -> None:
    """Keep a figure, and show it."""
    figures.setdefault(name, []).append(measured)
    console.print(
        f"  {name:38} {measured.throughput:9.0f} /s   p50 {measured.p50_ms:7.3f} ms   p99 {measured.p99_ms:7.3f} ms"
    )


# ---------------------------------------------------------------------- processes


@contextlib.contextmanager
def command(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run `edge-client`."""
    program = Path(sys.executable).with_name("edge-client")
    process = subprocess.Popen(
        [str(part) for part in (program, *arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=20)
        process.kill()


def addresses(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return where a process that was started listens, for gRPC and REST."""
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"gRPC on (\S+:\d+), REST on (\S+:\d+)", line)
        if found:
            return found[1], found[2]
    raise RuntimeError("edge-client ended before it served")


@contextlib.contextmanager
def serving(model: Path) -> Iterator[tuple[str, str]]:
    """Run `edge-client serve`; yield its gRPC and REST addresses."""
    with command("serve", model, "--grpc-port=0", "--rest-port=0") as process:
        yield addresses(process)


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run `edge-client daemon`; yield its gRPC address and its socket."""
    config = folder / "daemon.toml"
    config.write_text(
        f'state_dir = "{folder / "state"}"\n[server]\ngrpc_port = 0\nrest_port = 0\n'
        f'[model]\nengine = "onnx"\ninitial = "{folder / "model.pt"}"\n'
    )
    with command("daemon", "--config", config) as process:
        yield addresses(process)[0], folder / "state" / "daemon.sock"


@contextlib.contextmanager
def training(socket: Path, asked: TrainRequest) -> Iterator[Callable[[], int]]:
    """Let a daemon train; yield what tells how many steps it has taken. The caller ends the session."""
    steps, began, ended = [0], threading.Event(), []

    def count(_: object) -> None:
        steps[0] += 1
        began.set()

    def train() -> None:
        try:
            with DaemonClient(socket) as client:
                client.train(asked, count)
        except DaemonError as error:
            ended.append(str(error))
        began.set()

    thread = threading.Thread(target=train)
    thread.start()
    began.wait(120)
    if ended:
        raise RuntimeError(f"the daemon does not train: {ended[0]}")
    try:
        yield lambda: steps[0]
    finally:
        thread.join(60)


# ---------------------------------------------------------------------- what comes of it


def median(figures: Figures, name: str, field: str) -> float:
    """Return the median over the rounds."""
    return float(statistics.median(getattr(measured, field) for measured in figures[name]))


def best_throughput(figures: Figures, server: str, api: str) -> float | None:
    """Return a server's throughput with many clients, with or without batching, whichever is better."""
    found = [
        median(figures, n, "throughput") for n in figures if n.startswith(server) and n.endswith(f"{api}, {CLIENTS}")
    ]
    return max(found) if found else None


def ratio(figures: Figures, peer: str, apis: tuple[str, ...]) -> float | None:
    """Return our throughput over a peer's; of several APIs, the one that is worst for us."""
    ratios = []
    for api in apis:
        ours, theirs = best_throughput(figures, "ours", api), best_throughput(figures, peer, api)
        if ours is not None and theirs is not None:
            ratios.append(ours / theirs)
    return round(min(ratios), 2) if ratios else None


def report(
    figures: Figures,
    versions: dict[str, str],
    missing: dict[str, str],
    side_by_side: dict[str, Any],
    *,
    is_quick: bool,
) -> None:
    """Print the table, and write the results and the plot."""
    overhead = median(figures, "ours, gRPC, 1", "p50_ms") - median(figures, "in process, onnx", "p50_ms")
    quietness = median(figures, "daemon, training", "p99_ms") / median(figures, "daemon, idle", "p99_ms")
    headline = {
        "grpc_overhead_p50_ms": round(overhead, 3),
        "throughput_ratio_vs_mlserver": ratio(figures, "mlserver", ("gRPC", "REST")),
        "throughput_ratio_vs_litserve": ratio(figures, "litserve", ("REST",)),
        "p99_training_over_idle": round(quietness, 2),
    }
    fields = ("throughput", "p50_ms", "p99_ms")
    rows = [[name, *(f"{median(figures, name, field):,.3g}" for field in fields)] for name in figures]
    console.print(markdown_table(["server, API, clients", "answers/s", "p50 ms", "p99 ms"], rows))
    reached = [[key, value, TARGETS[key]] for key, value in headline.items()]
    console.print(markdown_table(["headline", "measured", "to reach"], reached))
    results: dict[str, Any] = {
        "measured": {name: [asdict(measured) for measured in rounds] for name, rounds in figures.items()},
        "peer_versions": versions,
        "peers_not_measured": missing,
        "engines": side_by_side,
        "is_quick": is_quick,
    }
    console.print(f"results: {save_results('inference', headline, results, 'onnxruntime', 'fastapi', 'uvicorn')}")
    plot(figures)
    console.print(f"plot: {PLOT}")


def plot(figures: Figures) -> None:
    """Draw throughput with many clients, and latency with and without training."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2))
    names = [name for name in figures if name.endswith(f", {CLIENTS}")]
    values = [median(figures, name, "throughput") for name in names]
    colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
    bars = left.barh([name.removesuffix(f", {CLIENTS}") for name in names], values, color=colours)
    left.bar_label(bars, fmt="{:,.0f}", padding=3)
    left.invert_yaxis()
    left.set_xlabel(f"answers per second, {CLIENTS} clients")
    left.margins(x=0.15)
    for place, name in enumerate(("daemon, idle", "daemon, training")):
        heights = [median(figures, name, field) for field in ("p50_ms", "p99_ms")]
        bars = right.bar([x + 0.4 * place for x in (0, 1)], heights, width=0.38, label=name.removeprefix("daemon, "))
        right.bar_label(bars, fmt="{:.2f}")
    right.set_xticks([0.2, 1.2], ["p50", "p99"])
    right.set_ylabel("latency over gRPC, ms")
    right.legend(title="the daemon is")
    figure.savefig(PLOT, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_show_locals=False)
    app.command()(main)
    app()
