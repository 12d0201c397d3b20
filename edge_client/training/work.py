"""What a device is asked to do, and what it answers, as plain data: who only asks for it needs no PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgenewton.common.evaluation import Evaluation


class WorkError(RuntimeError):
    """The work cannot be done; the text says why, for a person."""


@dataclass(frozen=True)
class DataRequest:
    """Which data, and what is trained on them."""

    settings: Mapping[str, Any]
    """Of `TrainSettings`, not checked yet."""
    index: int = 0
    """Number of this device's partition, from 0."""
    count: int = 1
    """Number of partitions."""


@dataclass(frozen=True)
class TrainRequest:
    """Some steps in one session of a coordinator."""

    data: DataRequest
    coordinator: str
    session: str
    device: str
    """Its id in the session; empty for the name in its certificate, or for one by the partition's number."""
    first_step: int
    """Number of the session's first step."""
    steps: int
    """Batches that each device trains in the session."""
    weights: bytes = field(repr=False)
    """To begin with, in the format of safetensors."""
    serving: Path | None = None
    """File of the model that serves, to compare the result with; a daemon whose gate wants that names it."""


@dataclass(frozen=True)
class TrainedStep:
    """One step, as the device saw it."""

    step: int
    loss: float
    """Mean loss over the device's own batch, before the update."""
    session_loss: float
    """The training loss, as every view shows it: the same over the batches of all devices, in the last exchange. Until
    there was one, the device's own."""
    devices: int
    exchange_s: float = 0.0
    """Seconds that it waited for the other devices, after its own backward."""
    curvature_s: float = 0.0
    """Seconds that it took to update and invert the curvature."""
    bytes_sent: int = 0
    """In the session so far."""
    bytes_received: int = 0
    evaluation: Evaluation | None = None
    """Of the device's model before the step, if it was tried."""
    epsilon: float | None = None
    """What the device's data have cost of its privacy budget so far, if it has one."""


@dataclass(frozen=True)
class TrainingReport:
    """What a device did."""

    steps: int
    """Batches that it trained."""
    step: int
    """Number of the step that would come next."""
    samples: int
    loss: float
    """The training loss of the last exchange, over the batches of all devices: what a coordinator shows, too."""
    bytes_sent: int
    bytes_received: int
    seconds: float
    weights_digest: str
    epsilon: float | None = None
    """What the device's data have cost of its privacy budget, if it has one; the loss is NaN then."""
    ended: str = ""
    """Why training ended before its last step; empty unless its data, or its privacy budget, did."""
    is_budget_spent: bool = False
    """Whether it was the budget: what was trained until then is a result, and nothing has failed."""


class Worker(Protocol):
    """Who does the work: the daemon, or this process. Weights are in the format of safetensors.

    Each method raises WorkError.
    """

    def initial_weights(self, settings: Mapping[str, Any]) -> bytes:
        """Return the weights that a run begins with."""

    def train(self, request: TrainRequest) -> tuple[TrainingReport, bytes]:
        """Train a session's steps; return the report and the weights."""

    def evaluate(self, data: DataRequest, weights: bytes) -> Evaluation:
        """Try weights on the device's held-out samples."""
