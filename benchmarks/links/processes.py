"""What the processes of a run do; imported once by the fork server."""

import copy
import logging
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from typing import Any

import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo  # torch imports it when the first optimizer is made, and imports do not count
from edgenewton.v1.codecs.sparse import Sparse

from benchmarks.convergence.learning_tasks import DEVICES, LearningTask
from benchmarks.convergence.trials import learning_task
from benchmarks.links.baselines import baseline
from benchmarks.links.configuration import RECIPES, Configuration
from benchmarks.links.device import Device, DivergedError, OwnBatches
from benchmarks.links.ours import OurDevice
from benchmarks.links.run import End
from benchmarks.links.snapshots import Record, SnapshotWriter, put_weights, read_snapshots
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.curvature.linalg import CurvatureError
from edge_client.exchange import NonFiniteGradientError
from edge_client.exchange.remote import GradientExchange

SESSION = "links"
READY_S = 120.0
"""Within so many seconds all devices have loaded their data."""
_DIVERGED = (DivergedError, NonFiniteGradientError, CurvatureError)
_IDLE = 19
"""The niceness of who works only while all others wait."""


@dataclass(frozen=True)
class DeviceJob:
    """What a device process does."""

    index: int
    address: str
    task: str
    what: Configuration
    seed: int
    budget: int


def run_coordinator(what: Configuration, told: Connection) -> None:
    """Hold one session, tell its address, and go on until the other end of the connection closes."""
    _decay_errors(what)
    codec = what.codec
    settings = SessionSettings(
        devices=DEVICES,
        codec=codec.name,  # type: ignore[arg-type]
        powersgd_rank=codec.powersgd_rank,
        topk_fraction=codec.topk_fraction,
        # A thin link takes its time for a model in fp32; the run has a limit of its own.
        step_deadline_s=600.0,
    )
    logging.disable(logging.WARNING)
    with embedded_coordinator() as coordinator:
        coordinator.create_session(SESSION, settings)
        told.send(coordinator.address)
        told.poll(None)


def run_device(job: DeviceJob, ready: Barrier, began: Any, handed_in: Connection | None, told: Connection) -> None:
    """Train until the budget is spent; who watches the run ends it before.

    Args:
        job: what is done.
        ready: all devices meet there before they join.
        began: takes the time at which they did.
        handed_in: where the model goes after each exchange that is evaluated; the first device alone has it.
        told: where the reason of a failure goes.

    """
    logging.disable(logging.WARNING)  # links are cut at the end of every run
    try:
        _train(job, ready, began, handed_in, told)
    except Exception as error:
        _tell(told, job, error)
        os._exit(1)


def run_judge(task_name: str, handed_in: Connection, verdicts: Connection, started: Event) -> None:
    """Evaluate the models that are handed in, one after the other, while the devices have nothing to do."""
    os.nice(_IDLE)
    torch.set_num_threads(1)
    task = learning_task(task_name)
    model = task.build()
    started.set()
    for snapshot in read_snapshots(handed_in):
        put_weights(model, snapshot.weights)
        verdicts.send((snapshot.record, task.evaluate(model)))


def make_device(job: DeviceJob, task: LearningTask) -> Device:
    """Return a device with the initial weights of the seed, the same for all devices and methods."""
    torch.manual_seed(job.seed)
    model = task.build()
    batches = OwnBatches(task, job.index, job.seed)
    if job.what.is_ours:
        return OurDevice(model, task, batches, job.index)
    return baseline(model, task, batches, RECIPES[job.what.method], job.what.options)


def _decay_errors(what: Configuration) -> None:
    """Let this process's sparse codecs keep as much of an error as the trial did, where that was searched."""
    Sparse.error_decay = what.options.get("error_decay", Sparse.error_decay)


def _tell(told: Connection, job: DeviceJob, error: Exception) -> None:
    end: End = "diverged" if isinstance(error, _DIVERGED) else "failed"
    told.send((f"device {job.index}: {type(error).__name__}: {error}", end))


def _train(job: DeviceJob, ready: Barrier, began: Any, handed_in: Connection | None, told: Connection) -> None:
    torch.set_num_threads(1)
    _decay_errors(job.what)
    task = learning_task(job.task)
    device = make_device(job, task)
    _warm_up(device, task, job)
    writer = None if handed_in is None else SnapshotWriter(handed_in)
    ready.wait(READY_S)
    start, processor = time.monotonic(), time.process_time()
    if writer is not None:
        began.value = start
    batches, exchanges, evaluated = 0, 0, 0
    with GradientExchange.connect(
        job.address, session=SESSION, device=f"device-{job.index}", connect_timeout_s=30.0
    ) as exchange:
        device.join(exchange)
        while batches < job.budget:
            try:
                result = device.train_batch()
            except _DIVERGED as error:
                _tell(told, job, error)  # before this device leaves and the others fail for that
                raise
            batches += 1
            if result is None:
                continue
            exchanges += 1
            # As often as the frontier benchmark evaluates.
            if writer is not None and batches - evaluated >= task.evaluate_every:
                evaluated = batches
                traffic = exchange.traffic
                size = (traffic.sent + traffic.received) / 2
                used = time.process_time() - processor
                record = Record(time.monotonic() - start, used, batches, exchanges, size)
                writer.write(record, device.model)
        if writer is not None:
            writer.close()


def _warm_up(device: Device, task: LearningTask, job: DeviceJob) -> None:
    """Let torch load what a model needs: no method is to pay for it."""
    model = copy.deepcopy(device.model)
    inputs, targets = OwnBatches(task, job.index, job.seed).next()
    for _ in range(2):
        task.loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
