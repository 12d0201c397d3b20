"""What eight devices train on, and what all methods are measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from benchmarks.long.union_gradient import Batch
from edge_client.tasks import Partition, PartitionKind, Samples, Task
from edge_client.tasks.data import in_memory
from edge_client.training.batches import BatchOrder
from edge_client.training.trainer import device_seed

DEVICES = 8
BATCH_SIZE = 16
MOST_TEST_SAMPLES = 1000
_AT_ONCE = 250


@dataclass(frozen=True)
class FleetData:
    """The private samples of each device, and a fixed part of the test samples."""

    devices: Sequence[Samples]
    test: Samples

    @classmethod
    def of(cls, task: Task, kind: PartitionKind) -> "FleetData":
        """Return a task's data, the same for all seeds."""
        parts = [Partition(index, DEVICES, kind, alpha=0.3, seed=0) for index in range(DEVICES)]
        test = in_memory(task, task.test_data(Partition()))
        chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(test))[:MOST_TEST_SAMPLES])
        return cls(
            [in_memory(task, task.train_data(part)) for part in parts],
            Samples(test.inputs[chosen], test.targets[chosen]),
        )


class FleetBatches:
    """The batches of all devices, in orders that the seed and the device give."""

    def __init__(self, data: FleetData, seed: int, device: torch.device) -> None:
        self._data = data
        self._device = device
        self._orders = [
            BatchOrder(len(samples), BATCH_SIZE, device_seed(seed, index)) for index, samples in enumerate(data.devices)
        ]

    def step(self, number: int) -> list[Batch]:
        """Return each device's batch of a step."""
        chosen = [torch.from_numpy(order.indices(number)) for order in self._orders]
        return [
            (samples.inputs[indices].to(self._device), samples.targets[indices].to(self._device))
            for samples, indices in zip(self._data.devices, chosen, strict=True)
        ]


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, test: Samples, device: torch.device) -> float:
    """Return the part of samples that a model recognises, as the task counts them."""
    was_training = model.training
    model.eval()
    correct = 0
    for first in range(0, len(test), _AT_ONCE):
        inputs, targets = test.inputs[first : first + _AT_ONCE], test.targets[first : first + _AT_ONCE]
        correct += task.correct(model(inputs.to(device)), targets.to(device))
    model.train(was_training)
    return correct / test.targets.numel()  # of sequences, each place
