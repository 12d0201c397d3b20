"""The interface of all curvature estimators: one object per layer.

Tensor format (`edge_client/curvature/layers/base.py`): inputs `a` are `[blocks, batch, shared, in]` and gradients of
pre-activations `g` are `[blocks, batch, shared, out]`, where `g` belongs to the loss of one sample, not to the mean
over the batch. A layer's gradient and its preconditioned gradient are `[blocks, out, in]`.

A statistic is a mean over samples, so the mean of the devices' statistics, weighted by their samples, is the statistic
of the union of their batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from edgenewton.common.options import check_choice, check_number
from torch import Tensor

from edge_client.curvature.inputs import Inputs, WeightSharing
from edge_client.curvature.layers import MatrixShape
from edge_client.curvature.whitening import Whitening

Inversion = Literal["cholesky", "eigen"]
Statistics = Mapping[str, Tensor]
"""A layer's statistics of a batch, by name."""


@dataclass(frozen=True, kw_only=True)
class EstimatorOptions:
    """What a user may choose of an estimator; one that has no use for an option ignores it."""

    factor_decay: float = 0.9
    """Weight of the past in the running curvature."""
    weight_sharing: WeightSharing = "expand"
    """How the uses of a weight within one sample count: "expand" counts each as a sample, "reduce" joins them."""
    inversion: Inversion = "cholesky"
    """Of Kronecker factors: "cholesky" damps each on its own; "eigen" damps their product exactly, and takes longer."""
    widest_factor: int = 256
    """About so many rows of a Kronecker factor are inverted together; what is wider is cut into blocks along its
    diagonal. Not with inversion="eigen"."""
    sample_positions: bool = True
    """Whether the input factor of a convolution is estimated from some positions of the images, where they are many."""

    def __post_init__(self) -> None:
        check_number("factor_decay", self.factor_decay, at_least=0, below=1)
        check_choice("weight_sharing", self.weight_sharing, get_args(WeightSharing))
        check_choice("inversion", self.inversion, get_args(Inversion))
        check_number("widest_factor", self.widest_factor, at_least=1)


@dataclass(frozen=True)
class EstimatorDefaults:
    """What suits an estimator where the user sets nothing."""

    lr: float
    momentum: float
    damping: float
    kl_clip: float
    update_clip: float


class Estimator(ABC):
    """Estimates the inverse Hessian of one layer, and preconditions its gradient."""

    name: ClassVar[str]
    """The name that users choose the estimator by."""
    defaults: ClassVar[EstimatorDefaults]
    gradient_degrees: ClassVar[Mapping[str, int]]
    """For each statistic, the power of the gradients that it is proportional to."""

    def __init__(self, shape: MatrixShape, options: EstimatorOptions) -> None:
        self.shape = shape
        self.options = options
        self.updates = 0

    @classmethod
    def supports(cls, shape: MatrixShape) -> bool:  # noqa: ARG003
        """Whether the estimator can handle a layer of this shape."""
        return True

    @property
    @abstractmethod
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """The statistics of a batch, by name, as they are exchanged between devices."""

    @property
    def statistic_structures(self) -> Mapping[str, str]:
        """What the elements of statistics stand for, by name, where they are matrices: see `TensorSpec.structure`."""
        return {}

    @abstractmethod
    def statistics(self, a: Inputs, g: Tensor) -> dict[str, Tensor]:
        """Return the statistics of a batch.

        Args:
            a: layer inputs.
            g: gradients of the pre-activations for each sample's own loss, `[blocks, batch, shared, out]`.

        """

    @abstractmethod
    def update(self, statistics: Mapping[str, Tensor], gradient: Tensor) -> None:
        """Take a batch into the running estimate.

        Args:
            statistics: of the batch; synchronised in shared scope.
            gradient: the synchronised gradient, `[blocks, out, in]`.

        """

    @property
    @abstractmethod
    def trace(self) -> float:
        """Sum of the estimate's eigenvalues."""

    @abstractmethod
    def refresh(self, damping: float) -> None:
        """Bring what `precondition` uses up to date with the running estimate.

        Args:
            damping: is added to the estimate's eigenvalues.

        Raises:
            CurvatureError: the estimate cannot be inverted; what `precondition` used before stays in use.

        """

    @abstractmethod
    def precondition(self, gradient: Tensor) -> Tensor:
        """Return the inverse of (curvature + damping), applied to a gradient `[blocks, out, in]`.

        `refresh` must have succeeded once.
        """

    def diagonal(self) -> Tensor | None:
        """Return the diagonal of the running estimate, as a matrix that broadcasts to `[blocks, out, in]`.

        None before the first update, and from an estimator that knows none.
        """
        return None

    def whitening(self) -> Whitening | None:
        """Return roots of the inverse that `precondition` applies, up to its scale.

        None before the first refresh, and from an estimator whose inverse is no Kronecker product.

        Raises:
            CurvatureError: the inverse has no root.

        """
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs to go on bit-identically."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""

    def next_decay(self) -> float:
        """Count an update and return the weight of the past in it.

        It grows as 1 - 1/k up to `factor_decay`, so that the first batches count alike and none is discounted towards
        zero (Martens & Grosse 2015, section 5).
        """
        self.updates += 1
        return min(1 - 1 / self.updates, self.options.factor_decay)
