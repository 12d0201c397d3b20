"""Trust regions: what keeps a second-order step where the quadratic model can be trusted."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from edge_client.curvature.preconditioner import Direction


class BoundedStep(NamedTuple):
    """What the parameters are moved along, within the trust regions."""

    directions: dict[Tensor, Tensor]
    """The direction of each parameter that has one, to be multiplied with its step size."""
    predicted_decrease: float
    """Decrease of the loss that the quadratic model predicts for the step, in the layers that are not personal."""
    common_share: float = 1.0
    """What that is of the decrease that it predicts in all layers."""


def bounded(
    directions: Iterable[Direction],
    lr_of: Callable[[Tensor], float],
    full_lr_of: Callable[[Tensor], float] | None = None,
    *,
    kl_clip: float,
    update_clip: float,
) -> BoundedStep:
    """Shorten the layers' directions so that the step stays in its trust regions.

    Personal layers have a region of their own: the others are to take the same step on all devices.

    The bounds are those of a step of the full size. One that a schedule has made f times as large is f times the full
    step after it was bounded: where a bound is active, a smaller step size alone would change nothing. So the bounds
    are f^2 kl_clip and f update_clip.

    Args:
        directions: of the layers.
        lr_of: returns the step size of a parameter.
        full_lr_of: returns what it is before a schedule makes it smaller; None for no schedule.
        kl_clip: bound on the sum of lr^2 P . G over the layers, and over the personal ones; shortens all of them alike.
        update_clip: bound on the norm of each layer's step, as a part of its weights' norm; shortens this layer.

    """
    directions = list(directions)
    lrs = [lr_of(layer.weight) for layer, _, _ in directions]
    full_lrs = lrs if full_lr_of is None else [full_lr_of(layer.weight) for layer, _, _ in directions]
    predicted, decrease = [0.0, 0.0], [0.0, 0.0]
    for (layer, _, alignment), full_lr in zip(directions, full_lrs, strict=True):
        predicted[layer.is_personal] += full_lr**2 * alignment
    of_all = [trust_region_scale(kl_clip, of_layers) for of_layers in predicted]
    scales = []
    for (layer, _, alignment), lr, full_lr, weight_norm, direction_norm in zip(
        directions, lrs, full_lrs, *_norms(directions), strict=True
    ):
        of_group = of_all[layer.is_personal]
        step_norm = full_lr * of_group * direction_norm
        scale = of_group * relative_step_scale(update_clip, step_norm, weight_norm, layer.shape.size)
        decrease[layer.is_personal] += (lr * scale - (lr * scale) ** 2 / 2) * alignment
        scales.append(scale)
    parameters: dict[Tensor, Tensor] = {}
    for (layer, _, _), matrix in zip(directions, _scaled([matrix for _, matrix, _ in directions], scales), strict=True):
        parts = layer.from_matrix(matrix)
        parameters.update((parameter, parts[name]) for name, parameter in layer.parameters.items())
    together = sum(decrease)
    return BoundedStep(parameters, decrease[0], decrease[0] / together if together else 1.0)


def _norms(directions: Sequence[Direction]) -> tuple[list[float], list[float]]:
    """Return the norms of the layers' weights and directions."""
    if not directions:
        return [], []
    of_layers = [list(layer.parameters.values()) for layer, _, _ in directions]
    parameters: list[Tensor] = [parameter for of_layer in of_layers for parameter in of_layer]
    norms = iter([float(norm) for norm in torch._foreach_norm(parameters)])
    weights = [math.hypot(*islice(norms, len(of_layer))) for of_layer in of_layers]
    return weights, [float(norm) for norm in torch._foreach_norm([matrix for _, matrix, _ in directions])]


def _scaled(matrices: list[Tensor], scales: list[float]) -> Sequence[Tensor]:
    return torch._foreach_mul(matrices, scales) if matrices else ()


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
