"""What a user may choose of the optimizer, in groups; each group checks itself."""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from edgenewton.common.options import check_choice, check_number

from edge_client.curvature.estimators import ESTIMATORS, Estimator, EstimatorDefaults, EstimatorOptions

Fisher = Literal["empirical", "sampled"]

_FORMER_NAMES = {"gradients": "soap"}


@dataclass(frozen=True)
class Curvature(EstimatorOptions):
    """How the inverse Hessian is estimated.

    Raises:
        OptionError: an option has an impossible value; the text names it.

    """

    FLAT_NAMES: ClassVar = {"estimator": "curvature"}

    estimator: str = "kfac"
    """One of `edge_client.curvature.ESTIMATORS`."""
    fisher: Fisher = field(default="empirical", kw_only=True)
    """Whether the gradients of the loss itself are used ("empirical"), or those that `sample_fisher` is given
    ("sampled")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator in _FORMER_NAMES:
            now = _FORMER_NAMES[self.estimator]
            warnings.warn(f"the estimator {self.estimator!r} is called {now!r} now", FutureWarning, stacklevel=3)
            object.__setattr__(self, "estimator", now)
        check_choice("curvature", self.estimator, ESTIMATORS)
        check_choice("fisher", self.fisher, get_args(Fisher))

    @property
    def estimator_type(self) -> type[Estimator]:
        """The estimator."""
        return ESTIMATORS[self.estimator]


@dataclass(frozen=True)
class TrustRegion:
    """How far a step may go. None stands for what suits the estimator.

    Raises:
        OptionError: an option has an impossible value; the text names it.

    """

    damping: float | None = None
    """Added to the curvature's eigenvalues, in units of their mean over all layers; it grows, see `shrink_after`."""
    kl_clip: float | None = None
    """Bound on lr^2 * P . G, summed over the layers; infinity for none."""
    update_clip: float | None = None
    """Bound on the norm of a layer's step, as a part of its weights' norm; infinity for none."""
    shrink_after: float = 50.0
    """Steps after which `kl_clip` is half of what it was at first: in step t it is divided by 1 + t / shrink_after, and
    `update_clip` by the root of that, as the step itself is, and the damping is multiplied with it: a smaller region
    is one of more damping. Infinity for what stays."""
    adapt_every: int | None = None
    """Steps between two comparisons of the loss with what the quadratic model predicted, which the damping then
    follows; `step` needs `reevaluate` for it, a forward pass each time. None for a damping that stays."""

    def __post_init__(self) -> None:
        check_number("damping", self.damping, above=0)
        check_number("kl_clip", self.kl_clip, above=0)
        check_number("update_clip", self.update_clip, above=0)
        check_number("shrink_after", self.shrink_after, above=0)
        check_number("adapt_every", self.adapt_every, at_least=1)

    def bounds(self, suitable: EstimatorDefaults) -> "Bounds":
        """Return the numbers, with what suits an estimator in place of None."""
        return Bounds(
            suitable.damping if self.damping is None else self.damping,
            suitable.kl_clip if self.kl_clip is None else self.kl_clip,
            suitable.update_clip if self.update_clip is None else self.update_clip,
        )

    def shrunk(self, step: int) -> float:
        """Return what a step's size is multiplied with by its number, where a bound is active.

        The steps of a noisy descent must become smaller, and not too soon, for it to end: their sum must diverge and
        that of their squares converge (Robbins & Monro 1951, https://doi.org/10.1214/aoms/1177729586). Roots of 1 / t
        are what suits an averaged descent, whatever its length (Moulines & Bach 2011, sections 3 and 4).
        """
        return 1 / math.sqrt(1 + step / self.shrink_after)


class Bounds(NamedTuple):
    """A trust region in numbers; see `TrustRegion`."""

    damping: float
    kl_clip: float
    update_clip: float


@dataclass(frozen=True)
class Refresh:
    """When the curvature is renewed.

    Raises:
        OptionError: an option has an impossible value; the text names it.

    """

    warmup_steps: int = 20
    """First steps, each of which updates and inverts the curvature."""
    factor_every: int = 20
    """Later, the most steps between two updates of the curvature statistics."""
    inverse_every: int = 20
    """Later, the most steps between two inversions."""
    growth: float = 1.2
    """Until then, each update and inversion comes so many times as late as the one before it: with 1.2 in the steps 0
    to 19, 23, 28, 34, 41, 50, ..., since curvature changes fast at first, and slowly later. 1 for as many as above
    between any two of them, right after the first steps."""

    def __post_init__(self) -> None:
        check_number("warmup_steps", self.warmup_steps, at_least=0)
        check_number("factor_every", self.factor_every, at_least=1)
        check_number("inverse_every", self.inverse_every, at_least=1)
        check_number("growth", self.growth, at_least=1)


@dataclass(frozen=True)
class IterateAverage:
    """Which average of the iterates is the training's result; see `NewtonOptimizer.averaged`.

    Raises:
        OptionError: an option has an impossible value; the text names it.

    """

    FLAT_NAMES: ClassVar = {"decay": "averaging"}

    decay: float = 0.99
    """How much of the average stays after each batch; less in the first ones, whose n-th, from 0, makes
    max(1 - decay, 9 / (10 + n)) of it. 0 for none: the last iterate is the result."""

    def __post_init__(self) -> None:
        check_number("averaging", self.decay, at_least=0, below=1)


def group_defaults(
    suitable: EstimatorDefaults, lr: float | None, momentum: float | None, weight_decay: float, *, maximize: bool
) -> dict[str, Any]:
    """Return the options of a group that has none of its own; None is for what suits the estimator.

    Raises:
        OptionError: an option has an impossible value; the text names it.

    """
    lr = suitable.lr if lr is None else lr
    momentum = suitable.momentum if momentum is None else momentum
    check_number("lr", lr, at_least=0)
    check_number("momentum", momentum, at_least=0, below=1)
    check_number("weight_decay", weight_decay, at_least=0)
    return {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
