"""The state of a second-order optimizer from its parts: to save, and for other devices to go on from."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from edge_client.curvature.preconditioner import Preconditioner
from edge_client.optim.averaging import RunningAverage
from edge_client.optim.decrease import DecreaseWatch
from edge_client.optim.groups import ParameterGroups
from edge_client.optim.refresh import RefreshSchedule
from edge_client.optim.saved_state import Personal
from edge_client.sync.plan import SyncPlan


class WholeState:
    """All that this device may go on from but what the plan knows.

    Args:
        optimizer: whose groups and momentum it has.
        model: the model that is trained.
        groups: the optimizer's.
        preconditioner: has the curvature.
        schedule: when the curvature is renewed.
        average: of the iterates.
        decreases: what adapts the damping.
        sync: knows what is personal.

    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        groups: ParameterGroups,
        preconditioner: Preconditioner,
        schedule: RefreshSchedule,
        average: RunningAverage,
        decreases: DecreaseWatch,
        sync: SyncPlan,
    ) -> None:
        self._optimizer = optimizer
        self._model = model
        self._groups = groups
        self._preconditioner = preconditioner
        self._schedule = schedule
        self._average = average
        self._decreases = decreases
        self._sync = sync

    def take(self) -> dict[str, Any]:
        """Return the state."""
        return Optimizer.state_dict(self._optimizer) | {
            "curvature": self._preconditioner.state_dict(),
            "began_at": self._schedule.began_at,
            "average": self._average.state_dict(),
            **self._decreases.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it belongs to another model; the text names the layers.

        """
        self._preconditioner.load_state_dict(state.pop("curvature", {}))
        self._schedule.began_at = state.pop("began_at", 0)
        self._average.load_state_dict(state.pop("average", {}))
        self._decreases.load_state_dict({n: state.pop(n) for n in self._decreases.state_dict() if n in state})
        Optimizer.load_state_dict(self._optimizer, state)
        self._groups.stray()

    def take_common(self) -> dict[str, Any]:
        """Return what another device may go on from."""
        return self._personal.taken_from(self.take())

    def load_common(self, state: dict[str, Any]) -> None:
        """Go on from where another device is; the personal layers stay as they are."""
        self.load(self._personal.kept_in(state, self.take()))

    @property
    def _personal(self) -> Personal:
        """What in the state is this device's alone."""
        if self._sync.is_private:
            everything = set(range(len(self._groups.by_parameter())))
            return Personal(everything, {state.name for state in self._preconditioner.layers}, frozenset())
        names = self._sync.personal
        own = {p for name, p in self._model.named_parameters(remove_duplicate=False) if name in names}
        numbers = {number for number, parameter in enumerate(self._groups.by_parameter()) if parameter in own}
        layers = {
            state.name for state in self._preconditioner.layers if state.layer.is_personal or self._sync.keeps_curvature
        }
        return Personal(numbers, layers, names)
