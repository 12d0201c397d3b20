"""A fleet of containers, brought up and taken down by the scripts in docker/ that a user runs."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as triton

from benchmarks.shared.ports import free_port
from coordinator.telemetry.watch import follow
from edge_client.tasks.digits import DigitsTask

DOCKER = Path(__file__).parents[2] / "docker"
IMAGE = "edgenewton:latest"
DEVICES = 4
SETTINGS = "steps=40 rounds=1 seed=0 codec='bf16' cadence='every-batch'"
DEADLINE_S = 600

Action = Callable[[], object]


def docker(*arguments: str) -> str:
    """Run `docker`, and return what it printed."""
    command = ["docker", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


class Fleet:
    """The fleet of a compose project, for the length of a `with` block; its ports are free ones."""

    def __init__(self, project: str, *variants: str) -> None:
        self.project = project
        self.variants = variants
        rest, recognition = _free_ports(DEVICES), _free_ports(DEVICES)
        self.grpc = [f"127.0.0.1:{recognition + number}" for number in range(DEVICES)]
        self.coordinator = f"127.0.0.1:{free_port()}"
        self.page = f"http://127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "COMPOSE_PROJECT_NAME": project,
            "IMAGE": IMAGE,
            "DEVICES": str(DEVICES),
            "SUPERLINK_PORT": str(free_port()),
            "COORDINATOR_PORT": self.coordinator.split(":")[1],
            "PAGE_PORT": self.page.rsplit(":", 1)[1],
            "REST_PORT": str(rest),
            "GRPC_PORT": str(recognition),
        }

    def __enter__(self) -> "Fleet":
        try:
            self.script("up", *self.variants)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.script("down", "--volumes")

    def script(self, name: str, *arguments: str, **environment: str) -> str:
        """Run a script of docker/, and return what it printed."""
        process = subprocess.Popen(
            [DOCKER / name, *arguments],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                output, _ = process.communicate(timeout=DEADLINE_S)
            finally:
                process.kill()
        assert process.returncode == 0, f"docker/{name}: {output}"
        return output

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        labels = {"project": self.project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        found = docker("ps", "--all", "--quiet", *filters).split()
        assert len(found) == 1, f"{service}: {found}"
        return found[0]

    def inspect(self, service: str) -> dict:
        """Return what Docker knows of a service's container."""
        return json.loads(docker("inspect", self.container(service)))[0]

    def execute(self, service: str, *command: str) -> str:
        """Run a command in a service's container, and return what it printed."""
        return docker("exec", self.container(service), *command)

    @contextmanager
    def serving(self, service: str, program: str) -> Iterator[None]:
        """Run a Python program in a service's container from when it prints a line to the end of a `with` block."""
        command = ["docker", "exec", self.container(service), "timeout", "120", "python", "-c", program]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout.readline()
                yield
            finally:
                process.kill()

    def logs(self) -> str:
        """Return the last lines of every container."""
        return self.script("compose", "logs", "--no-color", "--tail=30")

    def train(self, output: Path, settings: str, at_steps: dict[int, Action] | None = None) -> dict:
        """Train; return the last round's history. Once a step is committed, call what `at_steps` has for it."""
        with _Watch(self.coordinator, at_steps or {}) as watch:
            log = self.script("train", settings, OUTPUT=str(output))
        assert not watch.left, f"steps that were not seen: {list(watch.left)}; {log}"
        rounds = json.loads((output / "history.json").read_text())["rounds"]
        assert rounds, f"{log}\n{self.logs()}"
        return rounds[-1]

    def recognise(self, device: int, sample: int) -> str:
        """Ask a device over the Open Inference Protocol, with NVIDIA's client; return the label."""
        image = np.asarray(DigitsTask().sample_image(sample))[None]
        given = triton.InferInput("raw", image.shape, "UINT8")
        given.set_data_from_numpy(image)
        with triton.InferenceServerClient(self.grpc[device - 1]) as client:
            result = client.infer("model", [given], client_timeout=30)
        return result.as_numpy("label")[0].decode()


class _Watch:
    """Follows the coordinator's events, also across its restarts, and acts once a step is committed."""

    def __init__(self, address: str, actions: dict[int, Action]) -> None:
        self.left = dict(actions)
        self._address = address
        self._began = time.time()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._is_over.wait(0.1):
            with contextlib.suppress(grpc.RpcError):
                for event in follow(self._address):
                    # What happened before is told too.
                    if event.WhichOneof("event") == "step" and event.time_s > self._began:
                        self._act(event.step.step)

    def _act(self, committed: int) -> None:
        for step in [step for step in self.left if step <= committed]:
            self.left.pop(step)()

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()


def _free_ports(count: int) -> int:
    """Return the first of so many free ports in a row."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
