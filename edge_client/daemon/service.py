"""What a daemon can be asked over its socket; `Daemon` does it, `ControlServer` listens for it."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgenewton.common.evaluation import Evaluation
from edgenewton.v1 import device_pb2 as pb

from edge_client.training.work import DataRequest, TrainedStep, TrainingReport, TrainRequest


@dataclass(frozen=True)
class TrainingResult:
    """What a training led to."""

    report: TrainingReport
    weights: bytes = field(repr=False)
    not_promoted: str
    """Empty if the model serves now; else why it does not."""


class DeviceService(Protocol):
    """A device that trains and recognises. What is asked of its training raises BusyError or JobError."""

    def train(self, request: TrainRequest) -> AsyncGenerator[TrainedStep | TrainingResult, None]:
        """Train some steps in a session: yield each step, and the result at last. Who stops iterating ends it."""

    async def evaluate(self, data: DataRequest, weights: bytes) -> Evaluation:
        """Try weights on the device's held-out samples."""

    async def initial_weights(self, settings: Mapping[str, Any]) -> bytes:
        """Return the weights that a run begins with."""

    async def promote_bytes(self, content: bytes) -> int:
        """Let the model in a file's content serve; return its version.

        Raises:
            ArtefactError, TaskError: it cannot recognise; the serving one goes on.
            StoreError: it is of another task, or cannot be written.

        """

    def status(self) -> pb.StatusReply:
        """Return what the daemon does."""
