"""K-FAC: the curvature of a layer as a Kronecker product of two small matrices.

Martens & Grosse 2015 (https://arxiv.org/abs/1503.05671) for Linear, Grosse & Martens 2016
(https://arxiv.org/abs/1602.01407) for convolutions; weight sharing is "expand" in Eschenhagen et al. 2023
(https://arxiv.org/abs/2311.00636).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edge_client.curvature.estimator import Estimator
from edge_client.curvature.linalg import eigen, pack_symmetric, unpack_symmetric


def input_factor(a: Tensor) -> Tensor:
    """Return A `[in, in]`: the mean over samples of the sum over shared positions of a a^T (2016, eq. 24).

    Args:
        a: layer inputs, `[batch, shared, in]`.

    """
    rows = a.flatten(0, 1)
    return rows.T @ rows / len(a)


def gradient_factor(g: Tensor) -> Tensor:
    """Return G `[out, out]`: the mean over samples and shared positions of g g^T (2016, eq. 25).

    Args:
        g: gradients of the pre-activations for each sample's own loss, `[batch, shared, out]`.

    """
    rows = g.flatten(0, 1)
    return rows.T @ rows / len(rows)


class Kfac(Estimator):
    """K-FAC with the empirical Fisher, inverted exactly, damping included, in the eigenbasis of its factors."""

    name = "kfac"
    default_damping = 3e-4
    default_momentum = 0.3

    def __init__(self, in_features: int, out_features: int, ema: float) -> None:
        super().__init__(in_features, out_features, ema)
        self.A = torch.zeros(0)
        self.G = torch.zeros(0)
        self._eigen_A: tuple[Tensor, Tensor] | None = None
        self._eigen_G: tuple[Tensor, Tensor] | None = None

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """Both factors as packed upper triangles."""
        n, m = self.in_features, self.out_features
        return {"A": (n * (n + 1) // 2,), "G": (m * (m + 1) // 2,)}

    def statistics(self, a: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return both factors of a batch, packed."""
        return {"A": pack_symmetric(input_factor(a)), "G": pack_symmetric(gradient_factor(g))}

    def update(self, statistics: Mapping[str, Tensor]) -> None:
        """Move the factors' running means towards those of a batch."""
        A = unpack_symmetric(statistics["A"], self.in_features)
        G = unpack_symmetric(statistics["G"], self.out_features)
        decay = self.next_decay()
        if self.updates == 1:
            self.A, self.G = A, G
        else:
            self.A = torch.lerp(A, self.A, decay)
            self.G = torch.lerp(G, self.G, decay)

    def refresh(self) -> None:
        """Decompose both factors anew."""
        eigen_A, eigen_G = eigen(self.A), eigen(self.G)
        self._eigen_A, self._eigen_G = eigen_A, eigen_G

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """Return (A ⊗ G + damping I)^-1 vec(gradient) as a matrix.

        With A = Q_A D_A Q_A^T and G = Q_G D_G Q_G^T the inverse is diagonal in the basis Q_A ⊗ Q_G (George et al.
        2018, eq. 9, with the factors' own eigenvalues).
        """
        if self._eigen_A is None or self._eigen_G is None:
            return gradient / damping
        (values_A, Q_A), (values_G, Q_G) = self._eigen_A, self._eigen_G
        rotated = Q_G.T @ gradient @ Q_A
        return Q_G @ (rotated / (torch.outer(values_G, values_A) + damping)) @ Q_A.T

    def state_dict(self) -> dict[str, Any]:
        """Return factors, their decompositions and the count of updates."""
        return {
            "updates": self.updates,
            "A": self.A,
            "G": self.G,
            "eigen_A": self._eigen_A,
            "eigen_G": self._eigen_G,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.updates = state["updates"]
        self.A, self.G = state["A"], state["G"]
        self._eigen_A, self._eigen_G = state["eigen_A"], state["eigen_G"]
