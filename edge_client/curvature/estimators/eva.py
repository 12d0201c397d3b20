"""Eva: the curvature of a layer as the outer product of two mean vectors; no matrix is kept.

Zhang, Shi & Li 2023, "Eva: Practical Second-order Optimization with Kronecker-vectorized Approximation"
(https://openreview.net/forum?id=_Mic8V96Voy).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from edge_client.curvature.estimators.base import Estimator, EstimatorDefaults, EstimatorOptions
from edge_client.curvature.inputs import Inputs
from edge_client.curvature.layers import MatrixShape
from edge_client.curvature.linalg import precise


class Eva(Estimator):
    """Rank-one K-FAC: A = ā ā^T and G = ḡ ḡ^T, inverted in closed form (Sherman & Morrison)."""

    name = "eva"
    # One eigenvalue of a block is not 0, so their mean, the unit of damping, is small against it.
    defaults = EstimatorDefaults(lr=0.1, momentum=0.9, damping=100.0, kl_clip=float("inf"), update_clip=0.02)
    gradient_degrees: ClassVar[Mapping[str, int]] = {"a": 0, "g": 1}

    def __init__(self, shape: MatrixShape, options: EstimatorOptions) -> None:
        super().__init__(shape, options)
        self.a = torch.zeros(0)
        self.g = torch.zeros(0)
        self._damping = 0.0

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """Two vectors."""
        return {"a": (self.shape.blocks, self.shape.in_features), "g": (self.shape.blocks, self.shape.out_features)}

    def statistics(self, a: Inputs, g: Tensor) -> dict[str, Tensor]:
        """Return the means over samples and shared positions (eq. 8)."""
        return {"a": a.mean(), "g": g.mean(dim=(1, 2))}

    def update(self, statistics: Mapping[str, Tensor], gradient: Tensor) -> None:  # noqa: ARG002
        """Move the running means towards those of a batch (eq. 9 and 10)."""
        decay = self.next_decay()
        if self.updates == 1:
            self.a, self.g = statistics["a"].clone(), statistics["g"].clone()
        else:
            self.a = torch.lerp(statistics["a"], self.a, decay)
            self.g = torch.lerp(statistics["g"], self.g, decay)

    @property
    def trace(self) -> float:
        """|ā|² |ḡ|², summed over the blocks."""
        return float(self._curvature().sum()) if self.updates else 0.0

    def refresh(self, damping: float) -> None:
        """Nothing is cached but the damping."""
        self._damping = damping

    def precondition(self, gradient: Tensor) -> Tensor:
        """Return (ā ā^T ⊗ ḡ ḡ^T + damping I)^-1 vec(gradient) as matrices (eq. 13)."""
        along = torch.einsum("bo,boi,bi->b", precise(self.g), precise(gradient), precise(self.a))
        part = (along / (self._damping + self._curvature())).to(gradient)
        rank_one = self.g.unsqueeze(2) * self.a.unsqueeze(1) * part[:, None, None]
        return (gradient - rank_one) / self._damping

    def state_dict(self) -> dict[str, Any]:
        """Return both vectors, the damping and the count of updates."""
        return {"updates": self.updates, "a": self.a, "g": self.g, "damping": self._damping}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.updates, self.a, self.g = state["updates"], state["a"], state["g"]
        self._damping = state["damping"]

    def _curvature(self) -> Tensor:
        """Return the one eigenvalue of each block that is not 0, `[blocks]`, in float64: it must not overflow."""
        return precise(self.a).square().sum(dim=1) * precise(self.g).square().sum(dim=1)
