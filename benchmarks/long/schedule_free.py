"""Schedule-free AdamW (Defazio et al. 2024, https://arxiv.org/abs/2405.15682), with a BatchNorm that fits."""

from collections import deque
from collections.abc import Iterator, Sequence

import pytorch_optimizer
import torch
from torch import nn

from benchmarks.long.training import BaselineTraining, Variant
from benchmarks.long.union_gradient import Batch
from edge_client.tasks import Task

_RECENT = 4
"""So many steps' batches renew the running statistics before an evaluation."""


class ScheduleFreeTraining(BaselineTraining):
    """Trains where the gradients are taken, and evaluates the average that the method keeps.

    The running statistics belong to other weights than those that are evaluated; as its authors advise, they are
    computed anew, from the devices' last batches.
    """

    def __init__(self, model: nn.Module, task: Task, optimizer: pytorch_optimizer.ScheduleFreeAdamW) -> None:
        super().__init__(model, task, [optimizer], [], None)
        self._optimizer = optimizer
        self._recent: deque[Sequence[Batch]] = deque(maxlen=_RECENT)
        self._norms = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        ]
        optimizer.train()  # type: ignore[no-untyped-call]

    def add_gradient(self, batches: Sequence[Batch]) -> float:
        """Compute the gradient: see `Training`."""
        self._recent.append(batches)
        return super().add_gradient(batches)

    def evaluated(self) -> Iterator[tuple[Variant, nn.Module]]:
        """Yield the method's average."""
        before = [buffer.clone() for buffer in self.model.buffers()]
        self._optimizer.eval()  # type: ignore[no-untyped-call]
        if self._norms:
            self._renew_statistics()
        yield "plain", self.model
        self._optimizer.train()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)

    @torch.no_grad()
    def _renew_statistics(self) -> None:
        momenta = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches
        for batches in self._recent:
            for inputs, _ in batches:
                self.model(inputs)
        for norm, momentum in zip(self._norms, momenta, strict=True):
            norm.momentum = momentum
