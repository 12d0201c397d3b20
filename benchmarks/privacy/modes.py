"""The modes of a session whose leaks are measured: what is sent, and how it is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edge_client import EveryBatch, LocalSteps, PrivacyBudget, PrivateGradients, Probe, ProbeCurvature
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe_inputs import GaussianInputs
from edge_client.exchange import Exchange
from edge_client.sync.plan import SyncPlan
from edge_client.tasks import Task

ROUND = 10
"""Batches of a round of local steps."""
EPSILON, CLIP_NORM, EXCHANGES = 8.0, 0.5, 60
"""Of the privacy budget, whose unit is a device."""


@dataclass(frozen=True)
class Mode:
    """One of them."""

    name: str
    plan: Callable[[Exchange, Task, Tensor], SyncPlan]
    """Makes the plan of a device: of its exchange, the task, and all its inputs."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the session."""
    batches: int = 1
    """Of which one contribution is."""
    has_factors: bool = True
    """Whether Kronecker factors of a device's own samples leave it."""

    @property
    def is_masked(self) -> bool:
        """Whether devices mask what they send."""
        return bool(self.settings.get("secure_aggregation"))

    @property
    def attacked_step(self) -> int:
        """The step that is looked at: with scales, and a whitening, of those before; of rounds the first."""
        return 2 if self.batches == 1 else 0


def _every_batch(exchange: Exchange, _task: Task, _inputs: Tensor) -> SyncPlan:
    return EveryBatch(exchange)


def _whitened(exchange: Exchange, _task: Task, _inputs: Tensor) -> SyncPlan:
    return EveryBatch(exchange, whiten=True)


def _local_steps(exchange: Exchange, _task: Task, _inputs: Tensor) -> SyncPlan:
    return LocalSteps(exchange, ROUND)


def _probe(exchange: Exchange, task: Task, inputs: Tensor) -> SyncPlan:
    return ProbeCurvature(Probe(MeasuredInputs(inputs), task.loss, task.likelihood), exchange, whiten=False)


def _private(exchange: Exchange, task: Task, inputs: Tensor) -> SyncPlan:
    shape = inputs.shape[1:]
    probe = Probe(GaussianInputs(torch.zeros(shape), torch.ones(shape)), task.loss, task.likelihood)
    budget = PrivacyBudget(EPSILON, 1e-5, CLIP_NORM, devices=8, exchanges=EXCHANGES)
    return PrivateGradients(exchange, budget, probe)


PLAIN = Mode("plain fp32", _every_batch, {"codec": "fp32"})
MASKED = Mode("masked", _every_batch, {"secure_aggregation": True})
MODES = (
    PLAIN,
    Mode("int8", _every_batch, {"codec": "int8"}),
    Mode("4-bit whitened", _whitened, {"codec": "int4"}),
    Mode("local steps", _local_steps, {"codec": "fp32"}, batches=ROUND, has_factors=False),
    Mode("probe curvature", _probe, {"codec": "fp32"}, has_factors=False),
    MASKED,
    Mode("masked local steps", _local_steps, {"secure_aggregation": True}, batches=ROUND, has_factors=False),
    Mode("masked, probe curvature", _probe, {"secure_aggregation": True}, has_factors=False),
    Mode("privacy budget", _private, {"codec": "fp32"}, has_factors=False),
    Mode("masked, privacy budget", _private, {"secure_aggregation": True}, has_factors=False),
)
BY_NAME = {mode.name: mode for mode in MODES}
