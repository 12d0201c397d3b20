"""A coordinator and devices as real processes with a supervisor, to be killed and cut at will.

Processes come from a fork server that has imported everything, so that each starts in a moment; they share nothing.
Every device writes a line for each step that it has applied, with the digest of its weights.
"""

import contextlib
import json
import multiprocessing as mp
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.faults import processes
from benchmarks.shared.tcp_proxy import TcpProxy
from coordinator.telemetry.watch import follow

SESSION = "faults"
CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.faults.processes"])
_POLL_S = 0.02
_MAX_RESTARTS = 5


@dataclass(frozen=True)
class FleetSettings:
    """What a fleet does."""

    devices: int = 3
    quorum: int = 2
    steps: int = 24
    codec: str = "fp32"
    frame_bytes: int = 2048
    """Small, so that a step has many frames."""
    curvature: str = "eva"
    step_deadline_s: float = 10.0
    lease_s: float = 1.5
    save_every: int = 5
    seed: int = 0
    training: dict[str, str] = field(default_factory=dict)
    """More settings of the devices, as `edge-client train -c` takes them."""


@dataclass
class Fault:
    """What goes wrong, and where."""

    name: str
    device_failpoint: str = ""
    """Kills device 1, e.g. "before-send@7"."""
    coordinator_failpoint: str = ""
    slow_steps: tuple[int, int] = (0, 0)
    """Device 1 takes ten times as long from one step to another."""
    diverge_at: int = -1
    """Device 1's weights are changed behind its back before this step."""
    proxy_delay_s: float = 0.0
    at_step: int = -1
    """`action` is called once this step is seen to be committed."""
    action: Callable[["Fleet"], None] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the coordinator."""
    save_every: int | None = None
    """Steps between two savings of a device's state, if not as usual."""


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    name: str
    survived: bool
    bit_identical: bool
    steps_lost: int
    """Steps that some device had applied and that have another outcome in the end."""
    steps_repeated: int
    restarts: int
    accuracy: float
    seconds: float
    problem: str = ""


class Fleet:
    """One session with one fault."""

    def __init__(self, folder: Path, settings: FleetSettings, fault: Fault) -> None:
        self.folder = folder
        self.settings = settings
        self.fault = fault
        self.port = _free_port()
        self.restarts = 0
        self.coordinator: Any = None
        self.devices: list[Any] = []
        self.proxies: list[TcpProxy] = []
        self.committed: list[int] = []
        self._is_done = threading.Event()
        self._has_acted = False

    def run(self, deadline_s: float = 90.0) -> Outcome:
        """Run until all devices are done."""
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._start_coordinator(self.fault.coordinator_failpoint)
        address = f"127.0.0.1:{self.port}"
        self.proxies = [TcpProxy(address, self.fault.proxy_delay_s) for _ in range(self.settings.devices)]
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        for index in range(self.settings.devices):
            self.devices.append(self._start_device(index, first=True))
        problem = ""
        try:
            while any(device.exitcode != 0 for device in self.devices):
                self._supervise()
                if time.monotonic() > began + deadline_s:
                    raise RuntimeError(f"not done within {deadline_s:g} s")
                time.sleep(_POLL_S)
        except RuntimeError as error:
            problem = str(error)
        finally:
            self._is_done.set()
            self._stop()
        return self._outcome(time.monotonic() - began, problem)

    # ------------------------------------------------------------------ faults

    def kill_all(self, *, with_coordinator: bool) -> None:
        """Kill every device at once, and the coordinator too if wanted."""
        for process in [*self.devices, *([self.coordinator] if with_coordinator else [])]:
            os.kill(process.pid, signal.SIGKILL)

    def terminate_device(self) -> None:
        """Ask device 1 to stop."""
        os.kill(self.devices[1].pid, signal.SIGTERM)

    def terminate_coordinator(self) -> None:
        """Ask the coordinator to stop."""
        os.kill(self.coordinator.pid, signal.SIGTERM)

    def freeze_device(self, seconds: float) -> None:
        """Let device 1 stand still, longer than its lease perhaps."""
        pid = self.devices[1].pid
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(seconds, os.kill, (pid, signal.SIGCONT)).start()

    # ------------------------------------------------------------------ inner workings

    def _start_coordinator(self, failpoint: str) -> None:
        settings = self.settings
        options = {
            "session": SESSION,
            "port": self.port,
            "devices": settings.devices,
            "quorum": settings.quorum,
            "codec": settings.codec,
            "frame-bytes": settings.frame_bytes,
            "step-deadline-s": settings.step_deadline_s,
            "rejoin-deadline-s": 60,
            "heartbeat-s": settings.lease_s / 3,
            "lease-s": settings.lease_s,
            "digest-every": 4,
            "record": self.folder / "record.sqlite",
        } | self.fault.settings
        arguments = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
        if (self.folder / "record.sqlite").exists():
            arguments.append("--resume")
        log = self.folder / "coordinator.log"
        self.coordinator = CONTEXT.Process(
            target=processes.run_coordinator, args=(arguments, failpoint, str(log)), daemon=True
        )
        self.coordinator.start()

    def _start_device(self, index: int, *, first: bool) -> Any:
        is_victim = first and index == 1
        job = processes.DeviceJob(
            index=index,
            address=self.proxies[index].address,
            session=SESSION,
            folder=str(self.folder),
            devices=self.settings.devices,
            steps=self.settings.steps,
            curvature=self.settings.curvature,
            save_every=self.fault.save_every or self.settings.save_every,
            seed=self.settings.seed,
            training=self.settings.training,
            failpoint=self.fault.device_failpoint if is_victim else "",
            slow_steps=self.fault.slow_steps if is_victim else (0, 0),
            diverge_at=self.fault.diverge_at if is_victim else -1,
        )
        process = CONTEXT.Process(target=processes.run_device, args=(job,), daemon=True)
        process.start()
        return process

    def _supervise(self) -> None:
        """Restart what was killed or stopped; a failure of its own ends the run."""
        if self.coordinator.exitcode is not None:
            self._count_restart("the coordinator", self.coordinator.exitcode)
            self._start_coordinator("")
        for index, device in enumerate(self.devices):
            if device.exitcode not in (None, 0):
                self._count_restart(f"device {index}", device.exitcode)
                self.devices[index] = self._start_device(index, first=False)
        is_due = self.fault.at_step in self.committed
        if self.fault.action is not None and is_due and not self._has_acted:
            self._has_acted = True
            self.fault.action(self)

    def _count_restart(self, who: str, status: int) -> None:
        self.restarts += 1
        # 130: asked to stop. Whoever fails for another reason than a signal has not survived.
        if status not in (-signal.SIGKILL, -signal.SIGTERM, 130, 0) or self.restarts > _MAX_RESTARTS + 3:
            raise RuntimeError(f"{who} ended with status {status}; see {self.folder}")

    def _watch(self) -> None:
        """Note which steps the coordinator commits, across its restarts."""
        while not self._is_done.is_set():
            with contextlib.suppress(grpc.RpcError):
                for event in follow(f"127.0.0.1:{self.port}"):
                    if event.WhichOneof("event") == "step":
                        self.committed.append(event.step.step)
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        for process in [self.coordinator, *self.devices]:
            if process is not None and process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                process.kill()
                process.join(10)
        for proxy in self.proxies:
            proxy.close()

    def _outcome(self, seconds: float, problem: str) -> Outcome:
        results = [json.loads(path.read_text()) for path in sorted(self.folder.glob("result-*.json"))]
        digests = {result["digest"] for result in results}
        applied: dict[int, set[str]] = {}
        for path in self.folder.glob("steps-*.txt"):
            if self.fault.diverge_at >= 0 and path.name == "steps-1.txt":
                continue  # what it had was wrong, and is to be lost
            for line in path.read_text().splitlines():
                step, _, digest = line.partition(" ")
                # A process killed while writing leaves a part of a line.
                if len(digest) == 64:
                    applied.setdefault(int(step), set()).add(digest)
        lost = sum(len(outcomes) > 1 for outcomes in applied.values())
        is_complete = len(results) == self.settings.devices
        return Outcome(
            name=self.fault.name,
            survived=is_complete and not problem,
            bit_identical=is_complete and len(digests) == 1,
            steps_lost=lost,
            steps_repeated=len(self.committed) - len(set(self.committed)),
            restarts=self.restarts,
            accuracy=sum(r["correct"] for r in results) / max(1, sum(r["samples"] for r in results)),
            seconds=seconds,
            problem=problem,
        )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
