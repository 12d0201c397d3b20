"""Synchronous training of several devices in one process: the mean of their gradients is that of the union batch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from edge_client.optim import NewtonOptimizer
from edge_client.tasks import Partition, Samples, Task, load_task
from edge_client.tasks.data import in_memory
from edge_client.training.batches import BatchOrder
from edge_client.training.evaluation import evaluate
from edge_client.training.run import copy_weights
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import build_model, device_seed

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


class UnionBatches:
    """The batches that `devices` devices would train in each step, joined to one."""

    def __init__(self, task: Task, settings: TrainSettings, devices: int) -> None:
        self._parts: list[tuple[Samples, BatchOrder]] = []
        for index in range(devices):
            partition = Partition(index, devices, settings.partition, settings.alpha, settings.seed)
            samples = in_memory(task, task.train_data(partition))
            order = BatchOrder(len(samples), settings.batch_size, device_seed(settings.seed, index))
            self._parts.append((samples, order))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step."""
        chosen = [(samples, torch.from_numpy(order.indices(step))) for samples, order in self._parts]
        inputs = torch.cat([samples.inputs[indices] for samples, indices in chosen])
        return inputs, torch.cat([samples.targets[indices] for samples, indices in chosen])


def train_union(
    settings: TrainSettings, devices: int, optimizer: OptimizerFactory, until: float | None = None
) -> tuple[nn.Module, list[float]]:
    """Train as `devices` synchronous devices would, and return the model and its test accuracy after each batch.

    Of an optimizer that averages its iterates both are the average's.

    Args:
        settings: task, partition, batches and steps.
        devices: how many devices are stood for.
        optimizer: makes the optimizer of a model.
        until: stop when the accuracy has reached this.

    """
    task = load_task(settings.task)
    batches = UnionBatches(task, settings, devices)
    test = task.test_data(Partition())
    model = build_model(task, settings.seed)
    made = optimizer(model)
    accuracies = []
    for step in range(settings.steps):
        inputs, targets = batches.batch(step)
        made.zero_grad()
        task.loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        made.step()
        with _averaged(made):
            accuracies.append(evaluate(model, task, test).accuracy)
        if until is not None and accuracies[-1] >= until:
            break
    with _averaged(made):
        weights = copy_weights(model)
    model.load_state_dict(weights)
    return model, accuracies


def _averaged(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    return optimizer.averaged() if isinstance(optimizer, NewtonOptimizer) else nullcontext()


def batches_to(target: float, accuracies: list[float]) -> int | None:
    """Return after how many batches the accuracy first reached the target, or None."""
    return next((number for number, accuracy in enumerate(accuracies, start=1) if accuracy >= target), None)
