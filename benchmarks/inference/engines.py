"""The engines side by side: size of the file, start, memory and latency, each in processes of its own.

Run alone it measures only this, and puts it into benchmarks/results/inference.json.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.shared.results import FOLDER, machine, markdown_table, version_of
from edge_client.inference import Artefact, ArtefactError
from edge_client.inference.onnx_export import save_onnx, to_int8_onnx, to_onnx
from edge_client.tasks.digits import DigitsTask

RESULTS = FOLDER / "inference.json"
FIELDS = {
    "file_kb": "file, kB",
    "start_s": "start, s",
    "rss_mb": "memory, MB",
    "p50_us": "p50, µs",
    "p99_us": "p99, µs",
}
PACKAGES = ("torch", "onnxruntime", "executorch")


@dataclass(frozen=True)
class Engine:
    """An engine with the file that it runs."""

    name: str
    file: str
    of_artefact: str | None = None
    """What `Recognizer.load` is told, where the file does not say it."""


ENGINES = (
    Engine("torch", "model.pt"),
    Engine("export", "model.pt", "export"),
    Engine("onnx", "model.onnx"),
    Engine("onnx, int8", "int8.onnx"),
    Engine("executorch", "model.pte"),
)


@dataclass(frozen=True)
class Measured:
    """What was measured of an engine in one process."""

    file_kb: float
    """Size of the model's file, in 1,000 bytes."""
    start_s: float
    """From the start of the process to the first answer."""
    rss_mb: float
    """Resident memory after all answers, in 2^20 bytes, of everything that the engine needs."""
    p50_us: float
    """Of the calls with one decoded sample, on one thread."""
    p99_us: float


def make_files(folder: Path) -> dict[str, str]:
    """Write the digits CNN in every format; return why a file could not be made, by its name.

    The model is not trained: neither size nor time depends on the weights.
    """
    task = DigitsTask()
    torch.manual_seed(0)
    artefact = Artefact.of(task, "digits", task.model(), 0)
    artefact.save(folder / "model.pt")
    save_onnx(to_onnx(artefact, task), folder / "model.onnx")
    save_onnx(to_int8_onnx(artefact, task).content, folder / "int8.onnx")
    try:
        from edge_client.inference.executorch_export import to_executorch

        (folder / "model.pte").write_bytes(to_executorch(artefact, task))
    except ArtefactError as error:
        return {"model.pte": str(error)}
    return {}


def measure(folder: Path, engine: Engine, seconds: float) -> Measured:
    """Measure an engine in a new process."""
    arguments = [str(folder / engine.file), engine.of_artefact or "", str(seconds)]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.inference.engine_process", *arguments],
        capture_output=True,
        text=True,
        timeout=300 + seconds,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"{engine.name}: {process.stderr.strip().splitlines()[-1]}")
    return Measured(**json.loads(process.stdout))


def measure_engines(rounds: int, seconds: float) -> dict[str, Any]:
    """Measure all engines in turn, and print a table.

    Args:
        rounds: processes of each engine; the medians count.
        seconds: of calls in each.

    Returns:
        What the results have under "engines".

    """
    measured: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        missing = make_files(folder)
        for _ in range(rounds):
            for engine in ENGINES:
                if engine.file not in missing:
                    measured.setdefault(engine.name, []).append(measure(folder, engine, seconds))
    medians = {
        name: {field: round(statistics.median(getattr(one, field) for one in found), 3) for field in FIELDS}
        for name, found in measured.items()
    }
    print(markdown_table(["engine", *FIELDS.values()], [[name, *row.values()] for name, row in medians.items()]))
    for reason in missing.values():
        print(reason)
    return {
        "model": "digits CNN, one decoded sample, one thread",
        "median": medians,
        "measured": {name: [asdict(one) for one in found] for name, found in measured.items()},
        "not_measured": {engine.name: missing[engine.file] for engine in ENGINES if engine.file in missing},
        "machine": machine(),
        "versions": {package: version_of(package) for package in PACKAGES},
    }


def main(
    rounds: Annotated[int, typer.Option(help="Processes of each engine; the medians count.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of calls in each.", min=0.1)] = 3.0,
    quick: Annotated[bool, typer.Option("--quick", help="One short round; writes no results.")] = False,
) -> None:
    """Measure the engines; print a table, and renew their part of benchmarks/results/inference.json."""
    if quick:
        measure_engines(1, 0.3)
        return
    content = json.loads(RESULTS.read_text())
    content["engines"] = measure_engines(rounds, seconds)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(f"results: {RESULTS}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
