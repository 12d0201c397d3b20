"""The personal layers' part of a step that the devices take together: this device's own gradients and statistics."""

from dataclasses import replace

from torch import Tensor

from edge_client.curvature.estimators import Statistics
from edge_client.exchange import NonFiniteGradientError
from edge_client.sync.gradients import nonfinite_gradient
from edge_client.sync.model_tensors import ModelTensors
from edge_client.sync.plan import Subject, Update
from edge_client.sync.scope import give_up_doubted


class PersonalStep:
    """What the batch that is on gives for them."""

    def __init__(self, subject: Subject, tensors: ModelTensors) -> None:
        self._subject = subject
        self._tensors = tensors
        self.forget()

    def forget(self) -> None:
        """Forget the batch."""
        self._gradients: dict[Tensor, Tensor] = {}
        self._statistics: dict[str, Statistics] = {}

    def take(self, device: str, step: int, scale: float, loss_scale: float) -> None:
        """Take gradients, times `scale`, and the statistics where they are due.

        Raises:
            NonFiniteGradientError: a gradient holds NaN or infinity.

        """
        own, layers = self._tensors.own, self._subject.personal_layers
        bad = nonfinite_gradient(own)
        if bad is not None:
            raise NonFiniteGradientError(device, f"gradient of {bad!r}", step)
        self._gradients = {p: p.grad if scale == 1 else p.grad * scale for p in own if p.grad is not None}
        if self._subject.updates_curvature(step):
            give_up_doubted(layers)
            take = self._subject.batch.take_statistics
            self._statistics = {state.name: take(state, step, loss_scale) for state in layers}

    def added_to(self, update: Update) -> Update:
        """Return what is to be applied, with the personal layers' part; a device that healed has none."""
        if update.result.is_healed or not update.result.samples:
            return update
        return replace(
            update,
            gradients={**update.gradients, **self._gradients},
            statistics={**update.statistics, **self._statistics},
        )
