"""One soak: the product's own processes, workers with 64 devices, and somebody who kills, cuts, watches and asks."""

import contextlib
import multiprocessing as mp
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx

from benchmarks.shared.tcp_proxy import TcpProxy
from benchmarks.soak import honest, hostile
from benchmarks.soak.ledger import Account, settle
from benchmarks.soak.memory import MemoryWatch, growth
from coordinator.telemetry.watch import follow
from edge_client.inference import Artefact
from edge_client.tasks import load_task

CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.soak.honest", "benchmarks.soak.hostile"])
SAMPLE_S = 5.0
REPLAY_BYTES = 1 << 20
"""So few that they are full after the warm-up: they hold some 130 steps, more than go by while a device is away."""
_ASK_S = 0.5
_POLL_S = 0.2
_READY_S = 120.0
_GOODBYE_S = 90.0


class SoakError(RuntimeError):
    """The soak cannot go on: a process of the product ended, or never came."""


@dataclass(frozen=True)
class Plan:
    """What a soak does; the seed decides who does what, but not how the operating system interleaves it."""

    minutes: float = 30.0
    seed: int = 0
    honest_workers: int = 6
    hostile_workers: int = 2
    devices: int = 8
    """Of each worker."""
    kill_every_s: float = 20.0
    """Mean time between two kills of a worker with all its devices."""
    cut_every_s: float = 20.0
    """Mean time between two cuts of all connections of a worker of honest devices."""
    restart_s: float = 4.0
    """Longest time until a killed worker is started again."""

    @property
    def warm_up_s(self) -> float:
        """Seconds after which memory is to be flat: a sixth of the time, and at least 40 s."""
        return max(40.0, 10.0 * self.minutes)


@dataclass
class Told:
    """What somebody who watches the session was told, and how the servers answered honest clients."""

    committed: list[int] = field(default_factory=list)
    honest_left_out: int = 0
    """Contributions of honest devices that came too late for their steps, whose results they got like all others."""
    answers: Counter[str] = field(default_factory=Counter)
    slowest_answer_s: float = 0.0
    is_watching: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a soak went."""

    account: Account
    told: Told
    memory: dict[str, list[tuple[float, float]]]
    growth: dict[str, float]
    deeds: dict[str, dict[str, int]]
    """Of each deed, how often it was answered how."""
    kills: int
    cuts: int
    exit_codes: dict[str, int]


class Soak:
    """Runs a plan.

    Args:
        plan: what is done.
        folder: for logs, traces, the record; it is empty.

    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._draw = random.Random(plan.seed)
        self._told = Told()
        self._is_over = threading.Event()
        self._workers: list[Any] = []
        self._lives: list[int] = []
        self._restart_at: dict[int, float] = {}
        self._kills = self._cuts = 0

    def run(self) -> Outcome:
        """Run for the plan's minutes; then let all devices leave, and settle.

        Raises:
            SoakError: a process of the product ended early, or did not begin.

        """
        with contextlib.ExitStack() as stack:
            coordinator, exchange, page = stack.enter_context(self._coordinator())
            server, recognition, rest = stack.enter_context(self._server())
            self._addresses = (exchange, page, rest, recognition)
            self._proxies = [stack.enter_context(TcpProxy(exchange)) for _ in range(self._plan.honest_workers)]
            watching = threading.Thread(target=self._watch, args=(exchange,), daemon=True)
            asking = threading.Thread(target=self._ask, args=(page, rest), daemon=True)
            watching.start()
            count = self._plan.honest_workers + self._plan.hostile_workers
            self._lives = [-1] * count
            stack.callback(self._kill_all)
            self._workers = [self._start(number) for number in range(count)]
            asking.start()
            memory = MemoryWatch({"coordinator": coordinator.pid, "server": server.pid}, SAMPLE_S)
            self._disturb({"the coordinator": coordinator, "the recognition server": server})
            memory.stop()
            self._let_leave()
            self._is_over.set()
            asking.join(30)
            time.sleep(1.0)  # for what is on its way to whoever watches
            is_watching = self._told.is_watching
            codes = {name: _end(process) for name, process in (("coordinator", coordinator), ("server", server))}
            self._told.is_watching = is_watching
            watching.join(30)
        traces = {path.stem: path.read_text().splitlines() for path in sorted(self._folder.glob("*.trace"))}
        return Outcome(
            settle(traces, self._told.committed),
            self._told,
            memory.samples,
            {name: growth(samples, self._plan.warm_up_s) for name, samples in memory.samples.items()},
            self._deeds(),
            self._kills,
            self._cuts,
            codes,
        )

    # ------------------------------------------------------------------ the product's processes

    @contextlib.contextmanager
    def _coordinator(self) -> Iterator[tuple["subprocess.Popen[bytes]", str, str]]:
        members = self._plan.honest_workers * self._plan.devices
        options = {
            "session": honest.SESSION,
            "port": 0,
            "page-port": 0,
            "devices": members * 3 // 4,
            "quorum": members // 4,
            "max-devices": 2 * (members + self._plan.hostile_workers * self._plan.devices),
            "step-deadline-s": 3,
            "join-deadline-s": 60,
            "heartbeat-s": 2,
            "lease-s": 10,
            "replay-bytes": REPLAY_BYTES,
            "record": self._folder / "record.sqlite",
            "audit": self._folder / "audit.jsonl",
        }
        arguments = ["edge-coordinator", "serve", *(f"--{name}={value}" for name, value in options.items())]
        with self._process("coordinator", arguments) as (process, log):
            told = _wait_for(process, log, r"(?s)page and metrics are at (\S+)/.*coordinator listens on (\S+:\d+);")
            yield process, told[2], told[1]

    @contextlib.contextmanager
    def _server(self) -> Iterator[tuple["subprocess.Popen[bytes]", str, str]]:
        task = load_task("digits")
        model = self._folder / "model.pt"
        Artefact.of(task, "digits", task.model(), 0).save(model)
        with self._process("server", ["edge-client", "serve", model, "--grpc-port=0", "--rest-port=0"]) as found:
            process, log = found
            told = _wait_for(process, log, r"gRPC on (\S+), REST on (\S+)")
            yield process, told[1], told[2].rstrip(",.;")

    @contextlib.contextmanager
    def _process(self, name: str, arguments: list[Any]) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        command, *rest = arguments
        log = self._folder / f"{name}.log"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [Path(sys.executable).with_name(command), *map(str, rest)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        with process:
            try:
                yield process, log
            finally:
                process.kill()

    # ------------------------------------------------------------------ workers

    def _start(self, number: int) -> Any:
        plan = self._plan
        self._lives[number] += 1
        life, folder = self._lives[number], str(self._folder)
        if number < plan.honest_workers:
            job: Any = honest.Worker(number, life, plan.devices, self._proxies[number].address, folder, plan.seed)
            target: Any = honest.run_worker
        else:
            job = hostile.Worker(number, life, plan.devices, *self._addresses, folder, plan.seed)
            target = hostile.run_worker
        process = CONTEXT.Process(target=target, args=(job,), daemon=True)
        process.start()
        return process

    def _disturb(self, products: dict[str, "subprocess.Popen[bytes]"]) -> None:
        """Kill workers and cut connections until the time is over."""
        now = began = time.monotonic()
        kill_at = now + self._plan.warm_up_s / 4
        cut_at = kill_at
        while (now := time.monotonic()) < began + 60 * self._plan.minutes:
            for name, process in products.items():
                if process.poll() is not None:
                    raise SoakError(f"{name} ended with status {process.returncode}; see the log in {self._folder}")
            for number, process in enumerate(self._workers):
                if process.exitcode is not None and number not in self._restart_at:
                    raise SoakError(f"worker {number} ended with status {process.exitcode}; see {self._folder}")
            for number in [number for number, at in self._restart_at.items() if now > at]:
                del self._restart_at[number]
                self._workers[number] = self._start(number)
            if now > kill_at:
                self._kill(now)
                kill_at = now + self._draw.expovariate(1 / self._plan.kill_every_s)
            if now > cut_at:
                self._draw.choice(self._proxies).cut()
                self._cuts += 1
                cut_at = now + self._draw.expovariate(1 / self._plan.cut_every_s)
            self._is_over.wait(_POLL_S)

    def _kill(self, now: float) -> None:
        number = self._draw.randrange(len(self._workers))
        pause_s = self._draw.uniform(0.0, self._plan.restart_s)
        if number not in self._restart_at:
            self._restart_at[number] = now + pause_s
            self._workers[number].kill()
            self._kills += 1

    def _let_leave(self) -> None:
        """Stop the hostile devices, and let the honest ones finish their steps."""
        alive = [worker for number, worker in enumerate(self._workers) if number not in self._restart_at]
        for worker in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
        deadline = time.monotonic() + _GOODBYE_S
        for worker in alive:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.exitcode is None:
                worker.kill()
                worker.join(10)

    # ------------------------------------------------------------------ those who look

    def _watch(self, exchange: str) -> None:
        """Follow the session as its page does."""
        with contextlib.suppress(grpc.RpcError):
            for event in follow(exchange, honest.SESSION):
                if event.WhichOneof("event") == "step":
                    self._told.committed.append(event.step.step)
                    left_out = [name for name in event.step.commit.left_out if name.startswith("honest")]
                    self._told.honest_left_out += len(left_out)
        self._told.is_watching = False

    def _ask(self, page: str, rest: str) -> None:
        """Be an honest client of the page and the recognition server."""
        tensor = {"name": "raw", "datatype": "UINT8", "shape": [1, 8, 8], "data": [0] * 64}
        rest = rest if rest.startswith("http") else f"http://{rest}"
        with httpx.Client(timeout=20) as client:
            while not self._is_over.wait(_ASK_S):
                calls: dict[str, Callable[[], httpx.Response]] = {
                    "page": lambda: client.get(f"{page}/api/state"),
                    "recognition": lambda: client.post(f"{rest}/v2/models/digits/infer", json={"inputs": [tensor]}),
                }
                for name, call in calls.items():
                    began = time.monotonic()
                    try:
                        answer = str(call().status_code)
                    except httpx.HTTPError as error:
                        answer = type(error).__name__
                    self._told.answers[f"{name} {answer}"] += 1
                    self._told.slowest_answer_s = max(self._told.slowest_answer_s, time.monotonic() - began)

    def _deeds(self) -> dict[str, dict[str, int]]:
        deeds: dict[str, Counter[str]] = {}
        for path in self._folder.glob("*.deeds"):
            for line in path.read_text().splitlines():
                deed, _, answer = line.partition(" ")
                deeds.setdefault(deed, Counter())[answer] += 1
        return {deed: dict(sorted(answers.items())) for deed, answers in sorted(deeds.items())}


def _wait_for(process: "subprocess.Popen[bytes]", log: Path, pattern: str) -> "re.Match[str]":
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(pattern, log.read_text(errors="replace")):
            return found
        time.sleep(_POLL_S)
    raise SoakError(f"a process did not say where it listens within {_READY_S:g} s; see {log}")


def _end(process: "subprocess.Popen[bytes]") -> int:
    """Ask a process to stop, and return its exit status."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
