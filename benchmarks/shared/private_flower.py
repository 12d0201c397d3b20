"""A Flower of its own for one run: own SuperLink, own port, own FLWR_HOME, and nothing left behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from benchmarks.shared.ports import free_port

PROJECT = Path(__file__).resolve().parents[2]
RAY_DID_NOT_START = "ray/_private/node.py"
"""In the log of a run on the simulation engine that is worth another: the traceback goes through where Ray starts its
processes. It waits 15 or 30 s for each, a constant, and on a busy machine they now and then abort or take longer. No
client has run then."""
INSTALLS_NOTHING = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
"""Environment variable; "1" unless it is set. Else Flower makes an environment for each run, and installs into it what
the app's pyproject.toml names."""
_START_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 15.0


class FlowerError(RuntimeError):
    """Flower's processes could not be started or ended; the text says which."""


def flower_command(name: str, programs: Path | None = None) -> str:
    """Return the path of a Flower command in a folder; of one that belongs to this Python unless given."""
    beside = (programs or Path(sys.executable).parent) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"the command {name} is not installed beside {sys.executable}")
    return found


@contextlib.contextmanager
def interrupts_held_off() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the end of a `with` block; they act there."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is interrupted
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


class PrivateFlower:
    """A SuperLink, with SuperNodes or on Flower's simulation engine, that serves between `start` and `stop`.

    Its FLWR_HOME is a temporary folder that no other run shares.

    Args:
        folder: where its log `superlink.log` stays.
        supernodes: so many processes, each a node of the deployment engine; 0 for the simulation engine.
        programs: folder with Flower's commands; those of this Python unless given.
        base: environment variables of its processes, beside its own; those of this process unless given.

    """

    def __init__(
        self, folder: Path, supernodes: int = 0, *, programs: Path | None = None, base: Mapping[str, str] = os.environ
    ) -> None:
        self._programs = programs or Path(sys.executable).parent
        self._base = dict(base)
        self.log_path = folder.resolve() / "superlink.log"
        self.port = free_port()
        self.supernodes = supernodes
        self._root: Path | None = None
        self._superlink: subprocess.Popen[bytes] | None = None
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._environment: dict[str, str] = {}

    def start(self) -> None:
        """Start the SuperLink and wait until it answers; call `stop` whatever comes of it.

        Raises:
            FlowerError: it did not start within a minute; the text names its log.

        """
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with interrupts_held_off():  # or a process or folder could be made that `stop` does not know of
            self._root = Path(tempfile.mkdtemp(prefix="edgenewton-"))
            self._prepare(self._root)
            engine = [] if self.supernodes else ["--simulation"]
            self._superlink = self._spawn(
                "flower-superlink", "--insecure", *engine, "--host=127.0.0.1", f"--port={self.port}"
            )
        self._wait_until_up(self._superlink)
        for index in range(self.supernodes):
            with interrupts_held_off():
                node = self._spawn(
                    "flower-supernode",
                    "--insecure",
                    f"--superlink=127.0.0.1:{self.port}",
                    f"--port={free_port()}",
                    f"--node-config=partition-id={index} num-partitions={self.supernodes}",
                )
                self._nodes.append(node)

    def run(self, settings: Mapping[str, object], devices: int, app: Path = PROJECT) -> "subprocess.Popen[str]":
        """Start `flwr run` of an app with run config `settings`; the process ends with the run and prints its log.

        Its exit status does not say whether the run succeeded.
        """
        config = " ".join(f"{name}={_toml(value)}" for name, value in settings.items())
        command = [flower_command("flwr", self._programs), "run", str(app), "private", "--stream"]
        if not self.supernodes:
            resources = f"num-supernodes={devices} client-resources-num-cpus=1 init-args-num-cpus={devices}"
            command += ["--federation-config", resources]
        with interrupts_held_off():
            return subprocess.Popen(
                [*command, "-c", config],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the SuperLink and every process that was started for it; interrupts wait until that is done.

        Raises:
            FlowerError: processes are left, which could not be killed.

        """
        with interrupts_held_off():
            if self._root is None:
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                for group in self._groups():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(group, number)
                deadline = time.monotonic() + _STOP_DEADLINE_S
                while self._groups() and time.monotonic() < deadline:
                    time.sleep(0.1)
            left = self._groups()
            shutil.rmtree(self._root, ignore_errors=True)
            if left:
                raise FlowerError(f"these process groups of Flower could not be ended: {sorted(left)}")

    def _prepare(self, root: Path) -> None:
        home = root / "flower"
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "private"\n\n'
            f'[superlink.private]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self._environment = self._base | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            INSTALLS_NOTHING: os.environ.get(INSTALLS_NOTHING, "1"),
            "PYTHONUNBUFFERED": "1",  # or the log of `flwr run` would come when the run is over
            # Ray puts Unix sockets below it, whose paths may have 107 characters.
            "RAY_TMPDIR": str(root),
            "PATH": f"{self._programs}{os.pathsep}{self._base.get('PATH', '')}",
        }

    def _spawn(self, command: str, *options: str) -> "subprocess.Popen[bytes]":
        """Start one of Flower's servers; all of them write into the same log."""
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [flower_command(command, self._programs), *options],
                env=self._environment,
                cwd=self._root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _groups(self) -> set[int]:
        """Return the process groups that live in this FLWR_HOME: whatever Flower and Ray started for it."""
        # Asking for its status also takes a SuperLink that ended off the list of processes.
        servers = [*([self._superlink] if self._superlink is not None else []), *self._nodes]
        groups = {server.pid for server in servers if server.poll() is None}
        marker = f"FLWR_HOME={self._environment.get('FLWR_HOME')}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    groups.add(os.getpgid(int(folder.name)))
        return groups - {os.getpgrp()}

    def _wait_until_up(self, superlink: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_DEADLINE_S
        while superlink.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=1.0).is_success:
                    return
            time.sleep(0.1)
        raise FlowerError(f"Flower's SuperLink did not start; see {self.log_path}")


@contextlib.contextmanager
def private_flower(
    folder: Path, programs: Path | None = None, base: Mapping[str, str] = os.environ
) -> Iterator[PrivateFlower]:
    """Run a Flower of its own for the length of a `with` block; its log stays in `folder`."""
    flower = PrivateFlower(folder, programs=programs, base=base)
    try:
        flower.start()
        yield flower
    finally:
        flower.stop()


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, (str, Path)) else str(value)
