"""Several batches on each device alone, then an exchange of how far each has come."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.convergence.methods import Batch
from benchmarks.convergence.trials import DeviceBatches
from benchmarks.frontier.compression import Compression, MeanExchange
from benchmarks.frontier.interface import DivergedError, Round, Run
from benchmarks.shared.buffers import mean_buffers, put_buffers, take_buffers

Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class Plan:
    """Who steps how: on each device, and with what all have found together."""

    steps: int
    """Batches of each device between two exchanges."""
    inner: Callable[[nn.Module], Optimizers]
    """Makes the optimizers of a device."""
    outer: Callable[[nn.Module], torch.optim.Optimizer]
    """Makes the optimizer whose gradient is the mean of the devices' updates, with the other sign."""
    compression: Compression
    keeps_inner: bool = True
    """Whether a device's optimizer remembers its past over an exchange."""


class LocalRun(Run):
    """FedAvg and its kin. The outer step is the same everywhere, because all take it with the mean that arrives."""

    def __init__(self, model: nn.Module, task: LearningTask, seed: int, plan: Plan) -> None:
        self._shared = model
        self._task = task
        self._plan = plan
        self._devices = [copy.deepcopy(model) for _ in task.devices]
        self._inner: list[Optimizers | None] = [None] * len(self._devices)
        self._outer = plan.outer(model)
        self._exchange = MeanExchange(plan.compression, len(self._devices))
        self._batches = DeviceBatches(task, seed)
        self._step = 0

    @property
    def model(self) -> nn.Module:
        """The model that the next round starts from."""
        return self._shared

    def round(self) -> Round:
        """Train every device on its batches of the round, one device after the other, and take the outer step."""
        batches = [self._batches.step(self._step + number) for number in range(self._plan.steps)]
        self._step += self._plan.steps
        updates = [self._train(device, [step[device] for step in batches]) for device in range(len(self._devices))]
        mean, up, down = self._exchange.mean(updates)
        for name, parameter in self._shared.named_parameters():
            parameter.grad = -mean[name]
        self._outer.step()
        buffers, exact = mean_buffers([take_buffers(model) for model in self._devices])
        put_buffers(self._shared, buffers)
        return Round(self._plan.steps, up + exact, down + exact)

    def _train(self, device: int, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Return how far a device's parameters move."""
        model = self._devices[device]
        shared = dict(self._shared.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(shared[name])
        put_buffers(model, take_buffers(self._shared))
        optimizers = self._inner[device]
        if optimizers is None or not self._plan.keeps_inner:
            optimizers = self._inner[device] = self._plan.inner(model)
        for inputs, targets in batches:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = self._task.loss(model(inputs), targets)
            if not loss.isfinite():
                raise DivergedError(f"the loss of device {device} is not finite")
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
        return {name: (p - shared[name]).detach() for name, p in model.named_parameters()}
