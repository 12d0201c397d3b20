"""An exchange after every batch, but each device inverts with its own curvature; the models drift, and are averaged."""

from collections.abc import Collection, Mapping, Sequence

from edgenewton.common.options import check_number
from torch import Tensor

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.exchange import Exchange, StepResult
from edge_client.sync.every_batch import EveryBatch
from edge_client.sync.plan import Update

SYNC_EVERY = 10
"""Steps between two averages of the parameters, unless the user sets them."""


class LocalCurvature(EveryBatch):
    """Averages gradients after every batch, and parameters every few steps; no curvature leaves the device.

    Args:
        exchange: the way to the other devices; None for one device alone.
        sync_every: steps between two averages of the parameters.
        overlap: see `EveryBatch`.
        clip_grad_norm: see `EveryBatch`.
        training_samples: how many private samples this device holds; the coordinator is told.
        personal: see `EveryBatch`.

    Raises:
        OptionError: `sync_every` is impossible.

    """

    is_shared = False
    keeps_curvature = True

    def __init__(
        self,
        exchange: Exchange | None = None,
        sync_every: int = SYNC_EVERY,
        *,
        overlap: bool = True,
        clip_grad_norm: float | None = None,
        training_samples: int = 0,
        personal: str | Collection[str] = (),
    ) -> None:
        check_number("sync_every", sync_every, at_least=1)
        super().__init__(
            exchange,
            overlap=overlap,
            clip_grad_norm=clip_grad_norm,
            training_samples=training_samples,
            personal=personal,
        )
        self._sync_every = sync_every
        self._own: dict[str, Statistics] = {}
        """Of the batch that is on, by layer."""

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used, and how often the parameters are averaged."""
        return {"curvature_scope": "local", "sync_every": self._sync_every}

    @property
    def _exchanged_layers(self) -> Sequence[PreconditionedLayer]:
        return ()

    def _averages_in(self, step: int) -> bool:
        return step > 0 and step % self._sync_every == 0

    def _averaged(self) -> dict[str, Tensor]:
        return super()._averaged() | self._tensors.parameters

    def _received(self, result: StepResult) -> Update:
        update = super()._received(result)
        is_in_common = any(kind == "parameter" for kind, _ in result.tensors)
        if is_in_common and result.samples:
            self._subject.average(result.step % self._sync_every or self._sync_every)
        return update

    def _has_statistics(self, state: PreconditionedLayer) -> bool:
        return state.name in self._own

    def _take_statistics(self, state: PreconditionedLayer, loss_scale: float) -> None:
        self._own[state.name] = self._subject.batch.take_statistics(state, self.step, loss_scale)
        state.is_explained = state.is_explained and not state.is_doubted  # it is this device's own curvature

    def _statistics(self, result: StepResult) -> dict[str, Statistics]:  # noqa: ARG002
        # Of steps that the device took no part in there are none: it has them once.
        own, self._own = self._own, {}
        return own

    def _forget_batch(self) -> None:
        super()._forget_batch()
        self._own = {}
