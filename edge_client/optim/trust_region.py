"""What keeps a second-order step safe: trust regions, damping that adapts, and when curvature is renewed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_GROW_BELOW = 0.25
_SHRINK_ABOVE = 0.75


def trust_region_scale(kl_clip: float, predicted: float) -> float:
    """Return what a step is multiplied with so that it stays in the trust region.

    With the direction P = H^-1 G, lr^2 P . G is twice the Kullback-Leibler divergence that the quadratic model
    predicts for the step (Ba, Grosse & Martens 2017, section 5).

    Args:
        kl_clip: the bound.
        predicted: lr^2 P . G, summed over the layers.

    """
    return math.sqrt(kl_clip / predicted) if predicted > kl_clip else 1.0


def relative_step_scale(update_clip: float, step_norm: float, weight_norm: float, size: int) -> float:
    """Return what a layer's step is multiplied with so that it changes the weights by at most a part of their size.

    A batch says nothing of the directions that its samples do not span, where the quadratic model promises that any
    step is free. This bound holds there too, as layer-wise rates do (You, Gitman & Ginsburg 2017,
    https://arxiv.org/abs/1708.03888).

    Args:
        update_clip: the largest allowed ratio of the two norms.
        step_norm: Frobenius norm of the step.
        weight_norm: Frobenius norm of the layer's weights.
        size: number of the weights; those that are nearly 0 may grow as if they were 0.01 each.

    """
    allowed = update_clip * max(weight_norm, 0.01 * math.sqrt(size))
    return allowed / step_norm if step_norm > allowed else 1.0


def is_due(step: int, every: int, warmup: int) -> bool:
    """Whether something that happens every so many steps, and in each of the first `warmup` steps, happens now."""
    return step < warmup or (step - warmup) % every == 0


@dataclass
class AdaptiveDamping:
    """Levenberg and Marquardt's rule for the damping (Martens & Grosse 2015, section 6.5).

    The ratio of the loss's actual decrease to the one that the quadratic model predicted says how far the model can
    be trusted: below 1/4 the damping grows, above 3/4 it shrinks.
    """

    factor: float = 1.0
    """What the damping is multiplied with."""
    rate: float = 0.8
    """Damping shrinks by this, and grows by its inverse, at each observation."""
    smallest: float = 1e-4
    largest: float = 1e4

    def observe(self, actual: float, predicted: float) -> None:
        """Take note of a step.

        Args:
            actual: decrease of the loss.
            predicted: what the quadratic model promised.

        """
        ratio = actual / predicted if predicted > 0 and math.isfinite(actual) else 0.0
        if ratio < _GROW_BELOW:
            self.factor = min(self.factor / self.rate, self.largest)
        elif ratio > _SHRINK_ABOVE:
            self.factor = max(self.factor * self.rate, self.smallest)


def mean_curvature(traces: Iterable[float], sizes: Iterable[int]) -> float:
    """Return the mean eigenvalue of the curvature over all layers; damping is measured in it."""
    total = sum(sizes)
    return sum(traces) / total if total else 0.0
