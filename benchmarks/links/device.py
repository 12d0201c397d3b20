"""What a device does from one exchange to the next, whatever the method."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.convergence.trials import BATCH_SIZE
from edge_client.exchange import Exchange, StepResult
from edge_client.training.batches import BatchOrder
from edge_client.training.trainer import device_seed


class DivergedError(ArithmeticError):
    """The training has left the finite numbers."""


class OwnBatches:
    """The batches of one device: the same as the frontier benchmark gives it."""

    def __init__(self, task: LearningTask, index: int, seed: int) -> None:
        self._samples = task.devices[index]
        self._order = BatchOrder(len(self._samples), BATCH_SIZE, device_seed(seed, index))
        self._step = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        indices = torch.from_numpy(self._order.indices(self._step))
        self._step += 1
        return self._samples.inputs[indices], self._samples.targets[indices]


class Device(ABC):
    """A device of a training.

    Args:
        model: its own; all devices begin with the same weights.
        task: what is trained.
        batches: its own.

    """

    def __init__(self, model: nn.Module, task: LearningTask, batches: OwnBatches) -> None:
        self.model = model
        """What all devices share, whenever an exchange is over."""
        self._task = task
        self._batches = batches

    @abstractmethod
    def join(self, exchange: Exchange) -> None:
        """Take a place among the others."""

    @abstractmethod
    def train_batch(self) -> StepResult | None:
        """Train a batch; return what an exchange gave, if there was one after it.

        Raises:
            DivergedError: there is nothing finite to go on with.
            ExchangeError: the exchange has failed.

        """

    def _backward(self) -> float:
        """Compute the gradient of the next batch; return its loss."""
        inputs, targets = self._batches.next()
        loss = self._task.loss(self.model(inputs), targets)
        if not loss.isfinite():
            raise DivergedError("the loss is not finite")
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
