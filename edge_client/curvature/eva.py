"""Eva: the curvature of a layer as the outer product of two mean vectors; no matrix is kept.

Zhang, Shi & Li 2023, "Eva: Practical Second-order Optimization with Kronecker-vectorized Approximation"
(https://openreview.net/forum?id=_Mic8V96Voy).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edge_client.curvature.estimator import Estimator


class Eva(Estimator):
    """Rank-one K-FAC: A = ā ā^T and G = ḡ ḡ^T, inverted in closed form (Sherman & Morrison)."""

    name = "eva"
    # A rank-one curvature leaves all other directions to the damping, which so sets their step size.
    default_damping = 0.03
    default_momentum = 0.9

    def __init__(self, in_features: int, out_features: int, ema: float) -> None:
        super().__init__(in_features, out_features, ema)
        self.a = torch.zeros(0)
        self.g = torch.zeros(0)

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """Two vectors."""
        return {"a": (self.in_features,), "g": (self.out_features,)}

    def statistics(self, a: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the means over samples and shared positions (eq. 8)."""
        return {"a": a.mean(dim=(0, 1)), "g": g.mean(dim=(0, 1))}

    def update(self, statistics: Mapping[str, Tensor]) -> None:
        """Move the running means towards those of a batch (eq. 9 and 10)."""
        decay = self.next_decay()
        if self.updates == 1:
            self.a, self.g = statistics["a"].clone(), statistics["g"].clone()
        else:
            self.a = torch.lerp(statistics["a"], self.a, decay)
            self.g = torch.lerp(statistics["g"], self.g, decay)

    def refresh(self) -> None:
        """Nothing is cached."""

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """Return (ā ā^T ⊗ ḡ ḡ^T + damping I)^-1 vec(gradient) as a matrix (eq. 13)."""
        if not self.updates:
            return gradient / damping
        along = self.g @ gradient @ self.a
        curvature = self.a.square().sum() * self.g.square().sum()
        return (gradient - torch.outer(self.g, self.a) * (along / (damping + curvature))) / damping

    def state_dict(self) -> dict[str, Any]:
        """Return both vectors and the count of updates."""
        return {"updates": self.updates, "a": self.a, "g": self.g}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.updates, self.a, self.g = state["updates"], state["a"], state["g"]
