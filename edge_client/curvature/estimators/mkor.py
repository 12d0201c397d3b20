"""MKOR: both inverse factors are kept, and updated by rank one, so nothing is ever inverted.

Mozaffari, Li, Zhang & Dehnavi 2023, "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates"
(https://arxiv.org/abs/2306.01685): rank-one updates, norm-based stabiliser and gradient rescaling. The update is
Sherman and Morrison's formula itself, so that it equals the inverse of the running factor.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from edge_client.curvature.estimators.base import Estimator, EstimatorDefaults, EstimatorOptions
from edge_client.curvature.inputs import Inputs
from edge_client.curvature.layers import MatrixShape

_LARGEST = 100.0
"""An inverse factor with a larger entry is blended with the unit matrix until it has none."""


def rank_one_inverse(inverse: Tensor, vector: Tensor, decay: float) -> Tensor:
    """Return (decay C + (1 - decay) v v^T)^-1, given C^-1 (Sherman & Morrison 1950).

    Args:
        inverse: C^-1, symmetric, `[blocks, n, n]`.
        vector: v, `[blocks, n]`.
        decay: weight of the past, above 0 and at most 1.

    """
    scaled = inverse / decay
    image = torch.einsum("bij,bj->bi", scaled, vector)
    growth = 1 + (1 - decay) * (vector * image).sum(dim=1)
    return scaled - (1 - decay) / growth[:, None, None] * image.unsqueeze(-1) * image.unsqueeze(-2)


def stabilised(inverse: Tensor) -> Tensor:
    """Blend each block with the unit matrix whose largest entry is beyond the limit, so that it cannot explode."""
    weight = (_LARGEST / inverse.abs().amax(dim=(1, 2), keepdim=True)).clamp(max=1)
    unit = torch.eye(inverse.shape[-1], dtype=inverse.dtype, device=inverse.device)
    return weight * inverse + (1 - weight) * unit


class Mkor(Estimator):
    """Inverse factors of the running means of ā ā^T and ḡ ḡ^T, which begin as unit matrices.

    They need no damping. The direction is given the gradient's norm.
    """

    name = "mkor"
    defaults = EstimatorDefaults(lr=0.1, momentum=0.9, damping=1.0, kl_clip=float("inf"), update_clip=0.02)
    gradient_degrees: ClassVar[Mapping[str, int]] = {"a": 0, "g": 1}

    def __init__(self, shape: MatrixShape, options: EstimatorOptions) -> None:
        super().__init__(shape, options)
        self.inverse_A = torch.zeros(0)
        self.inverse_G = torch.zeros(0)

    @classmethod
    def supports(cls, shape: MatrixShape) -> bool:
        """Not one-hot inputs, whose inverse factor would be as large as the dictionary squared."""
        return not shape.one_hot

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """Two vectors."""
        return {"a": (self.shape.blocks, self.shape.in_features), "g": (self.shape.blocks, self.shape.out_features)}

    def statistics(self, a: Inputs, g: Tensor) -> dict[str, Tensor]:
        """Return the means over samples and shared positions."""
        return {"a": a.mean(), "g": g.mean(dim=(1, 2))}

    def update(self, statistics: Mapping[str, Tensor], gradient: Tensor) -> None:
        """Update both inverses by rank one."""
        if not self.updates:
            blocks, out, in_ = gradient.shape
            self.inverse_A = torch.eye(in_, dtype=gradient.dtype, device=gradient.device).expand(blocks, in_, in_)
            self.inverse_G = torch.eye(out, dtype=gradient.dtype, device=gradient.device).expand(blocks, out, out)
        self.updates += 1
        decay = self.options.factor_decay
        self.inverse_A = stabilised(rank_one_inverse(self.inverse_A, statistics["a"], decay))
        self.inverse_G = stabilised(rank_one_inverse(self.inverse_G, statistics["g"], decay))

    @property
    def trace(self) -> float:
        """0: the estimate is not damped, so its size is not asked for."""
        return 0.0

    def refresh(self, damping: float) -> None:
        """Nothing is cached."""

    def precondition(self, gradient: Tensor) -> Tensor:
        """Return G^-1 gradient A^-1, with the norm of the gradient."""
        direction = self.inverse_G @ gradient @ self.inverse_A
        largest = direction.abs().amax()
        if not largest > 0:
            return gradient
        direction = direction / largest
        rescaled: Tensor = direction * (gradient.norm() / direction.norm())
        return rescaled

    def state_dict(self) -> dict[str, Any]:
        """Return both inverses and the count of updates."""
        return {"updates": self.updates, "inverse_A": self.inverse_A, "inverse_G": self.inverse_G}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.updates, self.inverse_A, self.inverse_G = state["updates"], state["inverse_A"], state["inverse_G"]
