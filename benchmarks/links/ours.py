"""Our devices: the optimizer and the plan that users get."""

from torch import nn

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.frontier.ours import probe_of
from benchmarks.links import default
from benchmarks.links.device import Device, OwnBatches
from edge_client.exchange import Exchange, StepResult


class OurDevice(Device):
    """A device with our default."""

    def __init__(self, model: nn.Module, task: LearningTask, batches: OwnBatches, index: int) -> None:
        super().__init__(model, task, batches)
        self._probe = probe_of(task, index)  # measures the device's inputs

    def join(self, exchange: Exchange) -> None:
        """Take a place."""
        self._optimizer = default.optimizer(self.model, exchange, self._probe)
        self._optimizer.join()

    def train_batch(self) -> StepResult | None:
        """Train a batch; the plan decides what is exchanged."""
        self._optimizer.zero_grad()
        self._optimizer.report(self._backward())
        self._optimizer.step()
        result = self._optimizer.last_result
        # A step of the device's own has no other device in it.
        return result if result is not None and result.devices > 1 else None
