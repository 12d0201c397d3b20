"""What the daemon and its process that trains say to each other, over a socket that only they hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgenewton.common.evaluation import Evaluation
from edgenewton.common.tls import TlsFiles

from edge_client.daemon.config import LogConfig
from edge_client.training.work import DataRequest, TrainingReport, TrainRequest


@dataclass(frozen=True)
class Start:
    """How the process is to be; sent first."""

    state_dir: Path
    threads: int
    nice: int
    save_every_steps: int
    tls: TlsFiles | None
    """This device's certificate; None for plaintext."""
    log: LogConfig
    device: str = ""
    """The hardware that trains; empty for what a run asks for."""
    allow_tasks: tuple[str, ...] = ()
    """Import paths of tasks that a run may name, besides those of this package and of installed entry points."""
    publish_every_steps: int = 0
    """Steps between two models that come to serve while their training goes on; 0 for none."""
    require: tuple[str, ...] = ()
    """What a session must give to be joined."""


@dataclass(frozen=True)
class EvaluateMessage:
    """Asks to try weights."""

    data: DataRequest
    weights: bytes


@dataclass(frozen=True)
class InitialWeightsMessage:
    """Asks for the weights that a run begins with."""

    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """A model in the middle of its training."""

    step: int
    """Steps behind it."""
    model: Path
    """File of the artefact, which the next one replaces."""
    accuracy: float | None
    """None without held-out samples, or if nobody asked."""
    serving_accuracy: float | None
    """Of the model that served when the training began."""


@dataclass(frozen=True)
class Trained:
    """A job's result."""

    report: TrainingReport
    weights: bytes
    model: Path | None
    """File of the artefact; None if it cannot be written."""
    accuracy: float | None
    """None without held-out samples."""
    serving_accuracy: float | None
    trouble: str = ""
    """Why the artefact cannot be written."""


@dataclass(frozen=True)
class Failed:
    """Why a job failed, for a person."""

    reason: str
    is_abort: bool = False
    """Whether the session was ended for all devices, through no fault of this one."""


Job = TrainRequest | EvaluateMessage | InitialWeightsMessage
Result = Trained | Evaluation | bytes | Failed
"""What ends a job; a training sends a `TrainedStep` for each step before it, and now and then a `Published`."""
