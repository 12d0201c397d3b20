"""Our devices: the optimizer and the plan that users get."""

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.frontier.ours import probe_of
from benchmarks.links import default
from benchmarks.links.device import Device
from edge_client.curvature.probe import Probe
from edge_client.exchange import Exchange, StepResult


class OurDevice(Device):
    """A device with our default."""

    def join(self, exchange: Exchange) -> None:
        """Take a place."""
        self._optimizer = default.optimizer(self.model, exchange, self._probe)
        self._optimizer.join()

    def know(self, task: LearningTask, index: int) -> None:
        """Measure what a device knows of its inputs, as far as that can be done before there is a session."""
        self._probe: Probe = probe_of(task, index)

    def train_batch(self) -> StepResult | None:
        """Train a batch; the plan decides what is exchanged."""
        self._optimizer.zero_grad()
        self._optimizer.report(self._backward())
        self._optimizer.step()
        result = self._optimizer.last_result
        # A step of the device's own has no other device in it.
        return result if result is not None and result.devices > 1 else None
