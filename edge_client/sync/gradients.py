"""What plans ask of a batch's gradients: whether they are finite, and how large they are."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from edge_client.curvature.linalg import is_finite


def nonfinite_gradient(names: Mapping[Tensor, str]) -> str | None:
    """Return the name of a parameter whose gradient holds NaN or infinity, or None."""
    gradients = [p.grad for p in names if p.grad is not None]
    # Their norms decide nearly always; they may overflow themselves.
    if not gradients or all(math.isfinite(float(norm)) for norm in torch._foreach_norm(gradients)):
        return None
    return next((name for p, name in names.items() if p.grad is not None and not is_finite(p.grad)), None)


def clip_scale(parameters: Iterable[Tensor], bound: float | None) -> float:
    """Return what gradients are multiplied with so that their norm over all parameters is within a bound, if any."""
    if bound is None:
        return 1.0
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    return min(1.0, bound / norm) if norm > 0 else 1.0
