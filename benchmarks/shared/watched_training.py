"""A training as its coordinator's events tell it: accuracy, seconds and bytes behind so many batches."""

from dataclasses import dataclass

from edgenewton.v1 import exchange_pb2 as pb

from coordinator.telemetry.history import StepRecord
from coordinator.telemetry.statistics import SessionStatistics
from coordinator.telemetry.terminal import TerminalView


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes that a device sent and received, in the mean over the devices."""

    sent: float
    received: float


class WatchedTraining:
    """All steps of a training; feed it events with `apply`. The rounds of a Flower run are one training."""

    def __init__(self) -> None:
        self.view = TerminalView()
        self.steps: dict[int, StepRecord] = {}
        self.accuracy: dict[int, float] = {}
        """Accuracy on all held-out samples after so many batches of each device."""

    @property
    def statistics(self) -> SessionStatistics:
        """What is known of it as a whole."""
        return self.view.statistics

    @property
    def batches(self) -> int:
        """Batches of each device that were committed."""
        return 0 if self.statistics.step is None else self.statistics.step + 1

    @property
    def seconds(self) -> dict[int, float]:
        """Seconds from the beginning of training to the commit of the last of so many batches."""
        began_at = self.statistics.began_at
        return {} if began_at is None else {n + 1: step.time_s - began_at for n, step in self.steps.items()}

    @property
    def traffic(self) -> dict[int, DeviceBytes]:
        """Bytes behind so many batches of each device, where all devices contributed to the last of them.

        What a device has received of a step is known only from the commit of the next one.
        """
        devices = len(self.statistics.devices)
        return {
            batches: DeviceBytes(sent=before.received / devices, received=step.sent / devices)
            for batches, step in self.steps.items()
            if (before := self.steps.get(batches - 1)) is not None and before.devices == devices
        }

    def apply(self, event: pb.SessionEvent) -> None:
        """Take one event in."""
        self.view.apply(event)
        if event.WhichOneof("event") == "step":
            step = StepRecord.of(event.step, event.time_s, self.statistics)
            self.steps[step.step] = step
            if step.accuracy is not None:
                self.accuracy[step.step] = step.accuracy

    def add_evaluation(self, batches: int, accuracy: float) -> None:
        """Take an evaluation in that was done outside the steps, after so many batches."""
        self.accuracy[batches] = accuracy
        self.statistics.curves.accuracy.add(batches, accuracy)
