"""The interface of all curvature estimators: one object per layer.

Tensor format: inputs `a` are `[batch, shared, in]` and gradients of pre-activations `g` are `[batch, shared, out]`,
where `g` belongs to the loss of one sample, not to the mean over the batch. A layer's gradient and its preconditioned
gradient are matrices `[out, in]`.

A statistic is a mean over samples, so the mean of the devices' statistics, weighted by their samples, is the statistic
of the union of their batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Estimator(ABC):
    """Estimates the inverse Hessian of one layer, and preconditions its gradient."""

    name: str
    """The name that users choose the estimator by."""
    default_damping: float
    """Damping that suits the estimator where the user sets none."""
    default_momentum: float
    """Momentum that suits the estimator where the user sets none."""

    def __init__(self, in_features: int, out_features: int, ema: float) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.ema = ema
        self.updates = 0

    @property
    @abstractmethod
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """The statistics of a batch, by name, as they are exchanged between devices."""

    @abstractmethod
    def statistics(self, a: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the statistics of a batch.

        Args:
            a: layer inputs, `[batch, shared, in]`.
            g: gradients of the pre-activations for each sample's own loss, `[batch, shared, out]`.

        """

    @abstractmethod
    def update(self, statistics: Mapping[str, Tensor]) -> None:
        """Take the statistics of a batch into the running estimate."""

    @abstractmethod
    def refresh(self) -> None:
        """Bring what `precondition` uses up to date with the running estimate.

        Raises:
            CurvatureError: the estimate cannot be inverted; what `precondition` used before stays in use.

        """

    @abstractmethod
    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """Return the inverse of (curvature + damping), applied to a gradient `[out, in]`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs to go on bit-identically."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""

    def next_decay(self) -> float:
        """Count an update and return the weight of the past in it.

        It grows as 1 - 1/k up to `ema`, so that the first batches count alike and none is discounted towards zero
        (Martens & Grosse 2015, section 5).
        """
        self.updates += 1
        return min(1 - 1 / self.updates, self.ema)
