"""A real server process; these tests never import the server's own messages, which would meet tritonclient's."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edge_client.inference import Artefact, Recognizer
from edge_client.tasks import load_task


@dataclass
class Server:
    """`edge-client serve`, and the same model in this process."""

    process: "subprocess.Popen[str]"
    grpc: str
    rest: str
    recognizer: Recognizer
    log: Path

    def assert_alive(self) -> None:
        assert self.process.poll() is None


def _python_path() -> list[str]:
    return [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []


@contextlib.contextmanager
def serving(
    name: str, folder: Path, engine: str = "torch", *, may_fail: bool = False, options: Sequence[str] = ()
) -> Iterator[Server]:
    """Serve an untrained model of a task; end it by SIGTERM, which must be in order.

    Args:
        name: of the task, or its import path; modules of this folder are found.
        folder: where model and log go.
        engine: what runs the model.
        may_fail: whether there may be tracebacks in the log.
        options: more of `edge-client serve`.

    """
    torch.manual_seed(1)
    task = load_task(name)
    Artefact.of(task, name, task.model(), 7).save(folder / "model.pt")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("edge-client"),
                "serve",
                folder / "model.pt",
                "--grpc-port=0",
                "--rest-port=0",
                f"--engine={engine}",
                f"--allow-task={name}",
                *options,
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *_python_path()])},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
        )
        try:
            line = process.stdout.readline()
            found = re.search(r"gRPC on (\S+), REST on (\S+)", line)
            assert found, f"the server did not say where it listens: {line} {(folder / 'log').read_text()}"
            yield Server(
                process, found[1], found[2], Recognizer.load(folder / "model.pt", allow=[name]), folder / "log"
            )
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
            assert may_fail or "Traceback" not in (folder / "log").read_text()
        finally:
            process.kill()
            process.communicate()
