"""One run: a coordinator, four devices behind their links, and a judge, each a process, and what became of them.

The clock starts when all devices have loaded their data, built their models and computed a gradient; connecting and
joining count. The first device notes the time after each exchange and hands in a copy of the model. A judge evaluates
the copies in their order, with the lowest priority, so that evaluation takes nothing from the devices; the run's time
is that of the exchange whose model was the first to reach the target. When the judge finds it, or the limit is over,
all processes are killed.
"""

import contextlib
import math
import multiprocessing as mp
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.convergence.trials import learning_task
from benchmarks.links import processes
from benchmarks.links.configuration import Configuration
from benchmarks.links.link import LINKS, Links
from benchmarks.links.run import End, Run
from benchmarks.links.snapshots import Record
from benchmarks.shared.tcp_proxy import TcpProxy

CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.links.processes"])
_POLL_S = 0.5
_LEAVING_S = 15.0
"""What a device has to leave the session."""
_JUDGE_S = 120.0
"""What the judge has for what is left when the devices are done."""


@dataclass
class _Course:
    """What is known of a run so far."""

    task: str
    end: End | None = None
    last: Record = field(default_factory=Record)
    metrics: list[float] = field(default_factory=list)
    problem: str = ""

    def judge(self, record: Record, metric: float, limit_s: float) -> None:
        """Take a verdict; those after the end do not count."""
        if self.end is not None:
            return
        if record.seconds > limit_s:
            self.end = "time"
            return
        self.last = record
        if not math.isfinite(metric):
            self.fail("the metric is not finite", "diverged")
            return
        self.metrics.append(metric)
        if learning_task(self.task).is_reached(metric):
            self.end = "reached"

    def fail(self, problem: str, end: End = "failed") -> None:
        """Note the first failure: others follow from it."""
        if self.end is None:
            self.end, self.problem = end, problem

    @property
    def best(self) -> float | None:
        best = min if learning_task(self.task).metric == "loss" else max
        return best(self.metrics) if self.metrics else None


def train(task: str, links: str, what: Configuration, seed: int, budget: int, limit_s: float) -> Run:
    """Run one training; it takes no longer than the limit and what starting and judging take."""
    course = _Course(task)
    # Processes end before their links do: nobody is to look for a coordinator that is gone.
    with contextlib.ExitStack() as pipes, _processes() as started:
        _follow(course, pipes, started, (task, LINKS[links], what, seed, budget), limit_s)
    return Run(
        task,
        links,
        what.method,
        dict(what.options),
        what.codec.name,
        seed,
        course.end or "failed",
        limit_s,
        budget,
        round(course.last.seconds, 4),
        round(course.last.processor_s, 4),
        course.last.batches,
        course.last.exchanges,
        course.last.bytes,
        course.best,
        course.problem,
    )


@contextlib.contextmanager
def _processes() -> Iterator[list[Any]]:
    """Kill whatever was started."""
    started: list[Any] = []
    try:
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.join()
            process.close()


def _start(started: list[Any], target: Any, *arguments: Any) -> Any:
    process = CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    started.append(process)
    return process


def _follow(
    course: _Course,
    pipes: contextlib.ExitStack,
    started: list[Any],
    job: tuple[str, Links, Configuration, int, int],
    limit_s: float,
) -> None:
    """Start everything, and watch it until the run is over."""
    task, links, what, seed, budget = job

    def pipe(*, duplex: bool = False) -> tuple[Connection, Connection]:
        reader, writer = CONTEXT.Pipe(duplex)
        pipes.callback(reader.close)
        pipes.callback(writer.close)
        return reader, writer

    address, address_told = pipe(duplex=True)
    coordinator = _start(started, processes.run_coordinator, what, address_told)
    if not address.poll(processes.READY_S):
        course.fail("the coordinator did not start")
        return
    target = address.recv()
    proxies = [pipes.enter_context(TcpProxy(target, link.round_trip_s / 2, link.bit_s)) for link in links]
    handed_in, hand_in = pipe()
    verdicts, verdict = pipe()
    problems, problem = pipe()
    ready, is_judging = CONTEXT.Barrier(len(links)), CONTEXT.Event()
    began = CONTEXT.Value("d", 0.0)
    _start(started, processes.run_judge, task, handed_in, verdict, is_judging)
    if not is_judging.wait(processes.READY_S):
        course.fail("the judge did not start")
        return
    devices = [
        _start(
            started,
            processes.run_device,
            processes.DeviceJob(index, proxy.address, task, what, seed, budget),
            ready,
            began,
            None if index else hand_in,
            problem,
        )
        for index, proxy in enumerate(proxies)
    ]
    # Only with our own ends closed does an end of file come when the processes close theirs.
    hand_in.close()
    verdict.close()
    _watch(course, devices, coordinator, (verdicts, problems), began, limit_s)


def _watch(
    course: _Course,
    devices: list[Any],
    coordinator: Any,
    connections: tuple[Connection, Connection],
    began: Any,
    limit_s: float,
) -> None:
    """Follow the verdicts until the run is over."""
    verdicts, problems = connections
    given_up_at = time.monotonic() + processes.READY_S + limit_s
    while course.end is None:
        wait([verdicts, problems], _POLL_S)
        now = time.monotonic()
        if began.value:
            given_up_at = began.value + limit_s
        # Verdicts first: a device that fails after the target was reached changes nothing.
        is_open = _take_verdicts(course, verdicts, limit_s)
        if course.end is None and problems.poll():
            course.fail(*problems.recv())
        if course.end is None and now > given_up_at:
            _finish(course, devices, verdicts, limit_s)
            course.end = course.end or "time"
        elif course.end is None and not is_open:
            # The judge has judged all that there was: the first device is done, or dead.
            devices[0].join(_LEAVING_S)
            course.end = "budget" if devices[0].exitcode == 0 else None
        if course.end is None and (coordinator.exitcode is not None or any(device.exitcode for device in devices)):
            # A device tells why before it ends.
            course.fail(*(problems.recv() if problems.poll(1.0) else ("a process has ended",)))
        elif course.end is None and not is_open:
            course.fail("the judge has ended")


def _finish(course: _Course, devices: list[Any], verdicts: Connection, limit_s: float) -> None:
    """Stop the devices, and let the judge evaluate what they have handed in."""
    for device in devices:
        device.kill()
    deadline = time.monotonic() + _JUDGE_S
    while course.end is None and (left := deadline - time.monotonic()) > 0:
        if verdicts.poll(min(left, _POLL_S)) and not _take_verdicts(course, verdicts, limit_s):
            return


def _take_verdicts(course: _Course, verdicts: Connection, limit_s: float) -> bool:
    """Take what has come; return whether more may come."""
    try:
        while course.end is None and verdicts.poll():
            record, metric = verdicts.recv()
            course.judge(record, metric, limit_s)
    except (EOFError, OSError):
        return False
    return True
