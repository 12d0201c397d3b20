"""A Flower of its own for one run: own SuperLink, own port, own FLWR_HOME, and nothing left behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

PROJECT = Path(__file__).resolve().parent.parent
_START_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 15.0


def flower_command(name: str) -> str:
    """Return the path of a Flower command that belongs to this Python."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"the command {name} is not installed beside {sys.executable}")
    return found


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PrivateFlower:
    """A SuperLink on Flower's simulation engine that serves until `stop`.

    Args:
        home: folder for FLWR_HOME and the logs.

    """

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "private"\n\n'
            f'[superlink.private]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment = os.environ | {
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            # Ray puts Unix sockets below it, whose paths may have 107 characters.
            "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        self.log_path = self.home / "superlink.log"
        with self.log_path.open("wb") as log:
            self._superlink = subprocess.Popen(
                [
                    flower_command("flower-superlink"),
                    "--insecure",
                    "--simulation",
                    "--host=127.0.0.1",
                    f"--port={self.port}",
                ],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_up()

    def run(self, settings: Mapping[str, object], devices: int) -> "subprocess.Popen[str]":
        """Start `flwr run` with run config `settings`; the process ends with the run and prints its log."""
        config = " ".join(f"{name}={_toml(value)}" for name, value in settings.items())
        resources = f"num-supernodes={devices} client-resources-num-cpus=1 init-args-num-cpus={devices}"
        return subprocess.Popen(
            [
                flower_command("flwr"),
                "run",
                str(PROJECT),
                "private",
                "--stream",
                "--federation-config",
                resources,
                "-c",
                config,
            ],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def stop(self) -> None:
        """End the SuperLink and every process that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for group in self._groups():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, number)
            deadline = time.monotonic() + _STOP_DEADLINE_S
            while self._groups() and time.monotonic() < deadline:
                time.sleep(0.1)
        self._superlink.wait(timeout=_STOP_DEADLINE_S)
        shutil.rmtree(self.environment["RAY_TMPDIR"], ignore_errors=True)

    def _groups(self) -> set[int]:
        """Return the process groups that live in this FLWR_HOME: whatever Flower and Ray started for it."""
        groups = {self._superlink.pid} if self._superlink.poll() is None else set()
        marker = f"FLWR_HOME={self.home}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    groups.add(os.getpgid(int(folder.name)))
        return groups - {os.getpgrp()}

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline:
            if self._superlink.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=1.0).is_success:
                    return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"Flower's SuperLink did not start; see {self.log_path}")


@contextlib.contextmanager
def private_flower(home: Path) -> Iterator[PrivateFlower]:
    """Run a Flower of its own for the length of a `with` block."""
    flower = PrivateFlower(home)
    try:
        yield flower
    finally:
        flower.stop()


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, (str, Path)) else str(value)
