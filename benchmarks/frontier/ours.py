"""Our own methods: the optimizer and the plans that users get, over an exchange that only counts bytes."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from edgenewton.v1.codecs import CodecChoice
from torch import nn

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.convergence.methods import Batch
from benchmarks.convergence.trials import DeviceBatches
from benchmarks.frontier.interface import DivergedError, Round, Run
from benchmarks.frontier.lockstep import LockstepExchange, Meeting
from edge_client import NewtonOptimizer
from edge_client.curvature.likelihood import Likelihood
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe import Probe
from edge_client.sync import SyncPlan

MakePlan = Callable[[LockstepExchange, Probe], SyncPlan]


class OursRun(Run):
    """Every device is the product's own, in a thread of its own.

    Args:
        model: what all devices begin with.
        task: what is trained.
        seed: of the batches.
        choice: of the codec.
        make_plan: makes a device's plan, given its exchange and a probe.
        options: of the optimizer.

    """

    def __init__(
        self,
        model: nn.Module,
        task: LearningTask,
        seed: int,
        choice: CodecChoice,
        make_plan: MakePlan,
        options: dict[str, Any],
    ) -> None:
        self._shared = model
        self._task = task
        self._batches = DeviceBatches(task, seed)
        self._meeting = Meeting(len(task.devices), choice)
        self._devices = []
        for index in range(len(task.devices)):
            own = task.build()
            own.load_state_dict(model.state_dict())
            plan = make_plan(LockstepExchange(self._meeting, index), probe_of(task, index))
            self._devices.append((own, NewtonOptimizer(own, sync=plan, **options)))
        self._pool = ThreadPoolExecutor(len(self._devices))
        self._step = 0

    @property
    def model(self) -> nn.Module:
        """What users get: the average of the models that all devices agreed on, one after the other."""
        return self._shared

    def round(self) -> Round:
        """Train every device until the next exchange is over."""
        up, down, first = self._meeting.up, self._meeting.down, self._step
        while self._meeting.down == down:  # devices exchange together
            batches = self._batches.step(self._step)
            running = [self._pool.submit(self._train, index, batches[index]) for index in range(len(self._devices))]
            problems = [error for run in running if (error := run.exception()) is not None]
            if problems:
                raise next((p for p in problems if isinstance(p, DivergedError)), problems[0])
            self._step += 1
        of_first, optimizer = self._devices[0]
        with optimizer.averaged():
            self._shared.load_state_dict(of_first.state_dict())
        return Round(self._step - first, (self._meeting.up - up) / len(self._devices), self._meeting.down - down)

    def _train(self, index: int, batch: Batch) -> None:
        model, optimizer = self._devices[index]
        try:
            optimizer.zero_grad()
            loss = self._task.loss(model(batch[0]), batch[1])
            if not math.isfinite(float(loss)):
                raise DivergedError(f"the loss of device {index} is not finite")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.report(float(loss))
            optimizer.step()
        except BaseException:
            self._meeting.abort()
            raise


def probe_of(task: LearningTask, index: int) -> Probe:
    """Return the synthetic batch of a task, as a device of it knows its inputs."""
    inputs = task.devices[index].inputs
    tokens = None
    likelihood: Likelihood = "categorical"
    if not torch.is_floating_point(inputs):
        tokens = 1 + max(int(samples.inputs.max()) for samples in task.devices)
    elif task.metric == "loss":
        likelihood = "bernoulli"
    return Probe(MeasuredInputs(inputs, tokens), task.loss, likelihood)
