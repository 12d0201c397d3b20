"""Makes the environments of other servers with pip, and starts them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from benchmarks.shared.ports import free_port

HERE = Path(__file__).parent
PACKAGES = {
    "mlserver": ("mlserver==1.7.1", "onnxruntime", "setuptools<81"),
    "litserve": ("litserve==0.2.19", "onnxruntime", "numpy"),
}
_INSTALL_DEADLINE_S = 900
_START_DEADLINE_S = 90


class PeerUnavailableError(RuntimeError):
    """A peer cannot be measured on this machine; the text says why."""


def environment(peer: str, folder: Path) -> Path:
    """Return the folder of a peer's programs; it is installed the first time.

    Raises:
        PeerUnavailableError: it cannot be installed.

    """
    root = folder / peer
    stamp = root / ".installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", root], check=True, capture_output=True)
        command = [str(root / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES[peer]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_DEADLINE_S, check=False)
        except subprocess.TimeoutExpired:
            raise PeerUnavailableError(f"{peer} was not installed within {_INSTALL_DEADLINE_S} s") from None
        if done.returncode:
            raise PeerUnavailableError(f"{peer} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        stamp.touch()
    return root / "bin"


def installed_version(bin_folder: Path, peer: str) -> str:
    """Return the version of a peer in its environment."""
    code = f"from importlib.metadata import version; print(version({peer!r}))"
    return subprocess.run(
        [bin_folder / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@contextlib.contextmanager
def mlserver(bin_folder: Path, model: Path, folder: Path, batch: int) -> Iterator[tuple[str, str]]:
    """Run MLServer; yield its gRPC and REST addresses. A batch of 1 means no adaptive batching."""
    http, grpc, metrics = free_port(), free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "parallel_workers": 0,  # in the server's own process, which is quicker for a model that is this small
        "debug": False,
    }
    described: dict[str, object] = {
        "name": "digits",
        "implementation": "mlserver_model.OnnxModel",
        "parameters": {"version": "v1"},
    }
    if batch > 1:
        described |= {"max_batch_size": batch, "max_batch_time": 0.002}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(described))
    environment = {"PYTHONPATH": str(HERE), "BENCHMARK_MODEL": str(model)}
    with _running([bin_folder / "mlserver", "start", folder], environment, folder / "log"):
        _wait_for(f"http://127.0.0.1:{http}/v2/health/ready", folder / "log")
        yield f"127.0.0.1:{grpc}", f"127.0.0.1:{http}"


@contextlib.contextmanager
def litserve(bin_folder: Path, model: Path, folder: Path, batch: int) -> Iterator[str]:
    """Run LitServe; yield its address."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [bin_folder / "python", HERE / "litserve_model.py", str(port), str(batch)]
    with _running(command, {"BENCHMARK_MODEL": str(model)}, folder / "log"):
        _wait_for(f"http://127.0.0.1:{port}/health", folder / "log")
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command: list[object], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)


def _wait_for(address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(address, timeout=2.0).is_success:
                return
        time.sleep(0.2)
    tail = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise PeerUnavailableError(f"nothing answers at {address}: {' '.join(tail)}")
