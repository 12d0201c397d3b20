"""The tasks of the benchmark, and each device's batches."""

import warnings
from functools import cache

import torch
from torch import Tensor

from edge_client.tasks import Partition, Samples, Task, load_task
from edge_client.tasks.data import in_memory
from edge_client.tasks.task import PartitionKind
from edge_client.training.batches import BatchOrder
from edge_client.training.trainer import device_seed

DEVICES = 8
BATCH = 32
TASKS = ("digits", "motion")
"""Whose data are in the package."""
SPREADS: dict[str, PartitionKind] = {"alike": "iid", "skewed": "dirichlet"}
"""How the data are spread: alike, or with label skew, Dirichlet 0.3."""


class Fleet:
    """The devices of a trial, of which the last ones are bad."""

    def __init__(self, task: str, spread: str, seed: int, devices: int, bad: int, *, flips_labels: bool) -> None:
        self.task, self.parts, self.test = _data(task, spread)
        self.devices = devices
        self._flipping = range(devices - bad, devices) if flips_labels else range(0)
        self._orders = [BatchOrder(len(part), BATCH, device_seed(seed, i)) for i, part in enumerate(self.parts)]
        self._classes = 1 + int(max(part.targets.max() for part in self.parts))

    def batch(self, device: int, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a device's batch."""
        indices = torch.from_numpy(self._orders[device].indices(step))
        part = self.parts[device]
        targets = part.targets[indices]
        return part.inputs[indices], self._classes - 1 - targets if device in self._flipping else targets


@cache
def _data(name: str, spread: str) -> tuple[Task, list[Samples], Samples]:
    warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True")
    task = load_task(name)
    parts = [Partition(index, DEVICES, SPREADS[spread], 0.3, seed=0) for index in range(DEVICES)]
    return (
        task,
        [in_memory(task, task.train_data(part)) for part in parts],
        in_memory(task, task.test_data(Partition())),
    )
