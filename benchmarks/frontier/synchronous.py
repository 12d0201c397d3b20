"""Gradients exchanged after every batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.convergence.trials import DeviceBatches
from benchmarks.frontier.compression import Compression, MeanExchange
from benchmarks.frontier.interface import Round, Run
from benchmarks.shared.buffers import mean_buffers, put_buffers, take_buffers


class SynchronousRun(Run):
    """Every device computes the gradient of its batch; all take the same step along the mean that arrives."""

    def __init__(
        self,
        model: nn.Module,
        task: LearningTask,
        seed: int,
        optimizers: Sequence[torch.optim.Optimizer],
        compression: Compression,
    ) -> None:
        self._model = model
        self._task = task
        self._optimizers = optimizers
        self._batches = DeviceBatches(task, seed)
        self._exchange = MeanExchange(compression, len(task.devices))
        self._step = 0

    @property
    def model(self) -> nn.Module:
        """The model, of which all devices have the same."""
        return self._model

    def round(self) -> Round:
        """Train one batch."""
        before = take_buffers(self._model)
        gradients, buffers = [], []
        for inputs, targets in self._batches.step(self._step):
            put_buffers(self._model, before)
            gradients.append(self._gradient(inputs, targets))
            buffers.append(take_buffers(self._model))
        self._step += 1
        mean, up, down = self._exchange.mean(gradients)
        for name, parameter in self._model.named_parameters():
            parameter.grad = mean.get(name)
        for optimizer in self._optimizers:
            optimizer.step()
        averaged, exact = mean_buffers(buffers)
        put_buffers(self._model, averaged)
        return Round(1, up + exact, down + exact)

    def _gradient(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        self._model.zero_grad(set_to_none=True)
        self._task.loss(self._model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        return {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}
