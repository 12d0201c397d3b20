"""An exchange after every batch, with the curvature of a common probe: gradients are all that leaves a device."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.curvature.probe import Probe
from edge_client.exchange import Exchange, StepResult
from edge_client.sync.common_probe import CommonProbe
from edge_client.sync.every_batch import EveryBatch
from edge_client.sync.plan import Report, Update


class ProbeCurvature(EveryBatch):
    """Averages gradients after every batch; each device builds the same curvature from the same synthetic batch.

    Args:
        probe: the synthetic batch: see `CommonProbe`.
        exchange: the way to the other devices; None for one device alone.
        overlap: see `EveryBatch`.
        clip_grad_norm: see `EveryBatch`.
        whiten: see `EveryBatch`.
        training_samples: see `EveryBatch`.

    """

    def __init__(
        self,
        probe: Probe,
        exchange: Exchange | None = None,
        *,
        overlap: bool = True,
        clip_grad_norm: float | None = None,
        whiten: bool = True,
        training_samples: int = 0,
    ) -> None:
        super().__init__(
            exchange,
            overlap=overlap,
            clip_grad_norm=clip_grad_norm,
            whiten=whiten,
            training_samples=training_samples,
        )
        self._probe = CommonProbe(probe)

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used, and which probe."""
        return {**super().options, "curvature_scope": "probe", **self._probe.options}

    def specs(self) -> list[TensorSpec]:
        """Return also what the probe's inputs are drawn by."""
        return [*super().specs(), *self._probe.specs()]

    def wants_statistics(self, *, by_schedule: bool) -> bool:  # noqa: ARG002
        """Nothing of the device's own batch."""
        return False

    @property
    def _exchanged_layers(self) -> Sequence[PreconditionedLayer]:
        return ()

    def _has_statistics(self, state: PreconditionedLayer) -> bool:  # noqa: ARG002
        return True

    def _take_statistics(self, state: PreconditionedLayer, loss_scale: float) -> None:
        """Nothing is exchanged."""

    def _contribute_all(self, report: Report, *, skips: bool) -> None:
        super()._contribute_all(report, skips=skips)
        self._probe.contribute(self._place)

    def _received(self, result: StepResult) -> Update:
        self._probe.receive(result)
        return super()._received(result)

    def _statistics(self, result: StepResult) -> dict[str, Statistics]:
        if not self._subject.updates_curvature(result.step):
            return {}
        return self._probe.statistics(self._subject, result.step) or {}

    def _shared_state(self) -> dict[str, Any]:
        return super()._shared_state() | {"probe": self._probe.state_dict()}

    def _load_shared(self, state: Mapping[str, Any]) -> None:
        super()._load_shared(state)
        self._probe.load_state_dict(state.get("probe", {}))
