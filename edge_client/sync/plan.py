"""What a plan for the devices' synchronisation is: when a device exchanges what, and whose curvature it uses."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgenewton.common.evaluation import Evaluation
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor, nn

from edge_client.curvature.batch import Batch
from edge_client.curvature.estimators import Statistics
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.exchange.interface import StepResult
from edge_client.sync.replica import ModelReplica


@dataclass(frozen=True)
class Update:
    """What the optimizer is to apply in a step."""

    result: StepResult
    """Of the exchange behind it."""
    gradients: Mapping[Tensor, Tensor] = field(default_factory=dict)
    """Of each parameter; none in a step that only averaged."""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    """By layer, of those whose curvature is updated."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Means of the numbers that the devices told each other."""
    is_skipped: bool = False
    """Whether this device's own batch took part with no sample."""
    refreshes: bool | None = None
    """Whether the curvature is inverted anew; None for as the optimizer's schedule says."""


@dataclass(frozen=True)
class Report:
    """What a device tells with its batch."""

    loss: float = math.nan
    evaluation: Evaluation | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    samples: int | None = None
    """In the batch; None for what the layers have seen."""
    loss_scale: float = 1.0
    """What the loss was multiplied with, and the gradients are divided by already."""
    is_skipped: bool = False
    """Whether the batch is to take part with no sample."""
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    """What the step is applied with; it must be the same on all devices."""


@dataclass(frozen=True)
class Subject:
    """What a plan synchronises."""

    model: nn.Module
    layers: Sequence[PreconditionedLayer]
    batch: Batch
    """What is on."""
    updates_curvature: Callable[[int], bool]
    """Whether a step updates the curvature."""
    scalars: Sequence[str]
    """Names of the numbers that a report may have."""
    skips_nonfinite: bool
    """Whether a batch with a gradient that is not finite takes part with no sample; else it is an error."""
    apply: Callable[[Update], None]
    """Applies a step that this device took no part in."""
    average: Callable[[int], None]
    """Takes the model, which all devices have in common after so many more batches, into the average of the iterates;
    not called by a plan that is shared."""
    damping_of: Callable[[Tensor], float]
    """Returns the damping of a layer's weight, in units of the mean curvature."""
    has_personal: bool = False
    """Whether parts of the model are this device's own, so that the same inputs give something else on another."""

    @property
    def common_layers(self) -> list[PreconditionedLayer]:
        """Layers that all devices train together."""
        return [state for state in self.layers if not state.layer.is_personal]

    @property
    def personal_layers(self) -> list[PreconditionedLayer]:
        """Layers that this device keeps for itself."""
        return [state for state in self.layers if state.layer.is_personal]


class SyncPlan(ABC):
    """Decides what leaves a device and when, and what its optimizer applies. One object for one optimizer.

    The optimizer attaches it, joins, and then calls for every batch `on_gradient` as backward produces the gradients,
    `before_update`, and `after_update`.
    """

    is_shared = False
    """Whether the weights are equal on all devices before every step, and each update gives an iterate of all."""
    replica: ModelReplica
    """The device's state, for the exchange; parts register theirs with it, from `attach` on."""
    keeps_curvature = False
    """Whether the curvature is of this device's batches alone, and never leaves it, nor with its state."""
    personal: frozenset[str] = frozenset()
    """Names of the model's parameters and buffers that never leave this device; known from `attach` on."""
    is_private = False
    """Whether momenta and curvature, which come from this device's data alone, are kept from other devices, too."""

    @property
    def ended(self) -> str:
        """Why the privacy budget lets no batch follow; empty if one may, or without a budget."""
        return ""

    @property
    def epsilon(self) -> float | None:
        """What this device's data have cost of a privacy budget so far; None without one."""
        return None

    @property
    @abstractmethod
    def step(self) -> int:
        """Number of the step that is on, or comes next."""

    @property
    @abstractmethod
    def options(self) -> Mapping[str, object]:
        """What must be equal on all devices."""

    @property
    @abstractmethod
    def is_joined(self) -> bool:
        """Whether this device has its place."""

    @abstractmethod
    def attach(self, subject: Subject) -> None:
        """Take what is to be synchronised; nothing goes over a network."""

    @property
    @abstractmethod
    def is_alone(self) -> bool:
        """Whether there are no other devices."""

    @property
    @abstractmethod
    def has_left(self) -> bool:
        """Whether gradients have left already that no step has been made of."""

    @abstractmethod
    def leave(self, reason: str) -> None:
        """Give the place back, if this device has one among others, before the last step: they are told the reason."""

    def check_extensible(self) -> None:
        """Check that more of the model's parameters may be optimised from now on.

        Raises:
            RuntimeError: the other devices cannot follow.

        """
        if self.is_joined and not self.is_alone:
            raise RuntimeError(
                "the devices agreed on the tensors that they exchange when they joined the session; unfreeze the "
                "parameters before, or end the session and begin another with an optimizer of all of them"
            )

    @abstractmethod
    def extend(self) -> None:
        """Take note that the model has more parameters that require gradients, or layers, than when it was attached."""

    @abstractmethod
    def specs(self) -> list[TensorSpec]:
        """Return everything that may be exchanged."""

    @abstractmethod
    def join(self, options: Mapping[str, str]) -> None:
        """Take this device's place; its state becomes that of the others.

        Args:
            options: what must be equal on all devices.

        Raises:
            ExchangeError: the coordinator is down or refuses this device.

        """

    @property
    def is_in_common(self) -> bool:
        """Whether the parameters are now those of all devices, as far as the plan keeps them equal."""
        return True

    @contextmanager
    def in_common(self) -> Iterator[None]:
        """Let the model be, for a while, what all devices have in common; to try it, not to train it."""
        yield

    def wants_statistics(self, *, by_schedule: bool) -> bool:
        """Whether the curvature statistics of the batch that is on are used, if the optimizer's schedule wants them."""
        return by_schedule

    @abstractmethod
    def on_gradient(self, parameter: Tensor) -> None:
        """Take note that backward has produced a parameter's gradient, and that no more of it is to come.

        Raises:
            RuntimeError: it has been sent already in this step.
            ExchangeError: the exchange has failed.

        """

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients that have come since the last step: the batch is begun anew.

        Raises:
            RuntimeError: some have left for the other devices already.

        """

    @abstractmethod
    def before_update(self, report: Report) -> Update:
        """End the batch, and return what is to be applied: nothing if this device took over another's state instead.

        Raises:
            ExchangeError: the step cannot commit with this device.

        """

    @abstractmethod
    def after_update(self) -> StepResult | None:
        """Take note that the parameters were updated; return what an exchange gave, if there was one.

        Raises:
            ExchangeError: the step cannot commit with this device.

        """

    @abstractmethod
    def average(self) -> Update | None:
        """Make the devices' models identical: average what differs between them; None if nothing is to be applied."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on: "step", and what is this device's own."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave; before `join` it is what this device begins with."""
