"""The unit of processor time: a step of plain SGD, measured again and again beside the training it is compared with."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.long.union_gradient import Batch, UnionGradient
from edge_client.tasks import Task


def now(device: torch.device) -> float:
    """Return seconds of the processor or, where another computes, on the clock, when all work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class SgdStep:
    """SGD on a model of its own.

    Args:
        model: like the one that is trained.
        task: whose loss it is.
        device: where it is.

    """

    def __init__(self, model: nn.Module, task: Task, device: torch.device) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
        self._gradient = UnionGradient(model, task.loss)
        self._device = device
        self._seconds: list[float] = []

    def measure(self, batches: Sequence[Batch]) -> None:
        """Take a step, and note what a device spends on it: its own batch, and the whole update."""
        began = now(self._device)
        self._gradient.add(batches)
        computed = now(self._device)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._seconds.append((computed - began) / len(batches) + now(self._device) - computed)

    @property
    def seconds(self) -> float:
        """The median of what was measured; the first step is not counted unless it is the only one."""
        return statistics.median(self._seconds[1:] or self._seconds)
