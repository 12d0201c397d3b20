"""Whose curvature the local steps of a device use: its own, or one that all devices build from a common probe."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.exchange import Contributions, StepResult
from edge_client.sync.plan import Subject


class CurvatureScope(ABC):
    """Gives the statistics that a device's steps update the curvature with. One object for one plan."""

    keeps_curvature = False
    """Whether they are of its own batches alone, and the curvature never leaves it: see `SyncPlan.keeps_curvature`."""

    @property
    @abstractmethod
    def options(self) -> Mapping[str, object]:
        """What must be equal on all devices."""

    @abstractmethod
    def attach(self, subject: Subject) -> None:
        """Take what is trained."""

    @abstractmethod
    def wants_batch(self, *, by_schedule: bool, is_first: bool) -> bool:
        """Whether the statistics of the device's own batch are used.

        Args:
            by_schedule: whether the optimizer's schedule renews the curvature in this step.
            is_first: whether the batch is the first of a round.

        """

    @abstractmethod
    def statistics(self, step: int, loss_scale: float, *, is_first: bool) -> dict[str, Statistics]:
        """Return, by layer, what the step that is on updates the curvature with."""

    @abstractmethod
    def refreshes(self, *, is_first: bool) -> bool | None:
        """Whether the curvature is inverted anew; None for as the optimizer's schedule says."""

    def begin_round(self, step: int) -> None:  # noqa: B027
        """Take note that a round begins, with the parameters that all devices share."""

    @property
    def in_common(self) -> Mapping[str, Statistics]:
        """Statistics of layers that all devices know, in this round; the same object for as long as they stay."""
        return {}

    def specs(self) -> list[TensorSpec]:
        """Return what the devices tell each other."""
        return []

    def contribute(self, place: Contributions) -> None:  # noqa: B027
        """Tell it, in a step in which it is due."""

    def receive(self, result: StepResult) -> None:  # noqa: B027
        """Take what the devices told, in the step after which all know it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is equal on all devices."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from a state that `state_dict` gave."""

    def own_state_dict(self) -> dict[str, Any]:
        """Return what is this device's alone, in the midst of a round."""
        return {}

    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from a state that `own_state_dict` gave; an empty one is that of a round's beginning."""


class Own(CurvatureScope):
    """The curvature of the device's own batches: none leaves it, and devices know none in common."""

    keeps_curvature = True

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used."""
        return {"curvature_scope": "local"}

    def attach(self, subject: Subject) -> None:
        """Take what is trained."""
        self._subject = subject

    def wants_batch(self, *, by_schedule: bool, is_first: bool) -> bool:  # noqa: ARG002
        """As the schedule says."""
        return by_schedule

    def statistics(self, step: int, loss_scale: float, *, is_first: bool) -> dict[str, Statistics]:  # noqa: ARG002
        """Return those of the batch that is on."""
        return own_statistics(self._subject, step, loss_scale) if self._subject.updates_curvature(step) else {}

    def refreshes(self, *, is_first: bool) -> bool | None:  # noqa: ARG002
        """As the schedule says."""
        return None


def own_statistics(subject: Subject, step: int, loss_scale: float) -> dict[str, Statistics]:
    """Return each layer's statistics of the batch that is on."""
    give_up_doubted(subject.layers)
    return {state.name: subject.batch.take_statistics(state, step, loss_scale) for state in subject.layers}


def give_up_doubted(layers: Sequence[PreconditionedLayer]) -> None:
    """Let the layers do without curvature that this device doubts: it is its own."""
    for state in layers:
        state.is_explained = state.is_explained and not state.is_doubted
