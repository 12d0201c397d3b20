"""A curvature estimate that is a Kronecker product of two running factors, and its damped inverse.

K-FAC and its relatives differ only in where the factors come from.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from edge_client.curvature.estimators.base import Estimator, EstimatorOptions
from edge_client.curvature.factor import Factor, multiply_left, multiply_right
from edge_client.curvature.layers import MatrixShape
from edge_client.curvature.linalg import precise
from edge_client.curvature.whitening import Whitening, root_in_basis, root_of


class FactoredInverse(NamedTuple):
    """(G + √λ/π I)^-1 and (A + π√λ I)^-1, where π² is the ratio of the factors' mean eigenvalues.

    Martens & Grosse 2015, section 6.3. A is a diagonal for one-hot inputs.
    """

    A: Tensor
    G: Tensor

    @classmethod
    def of(cls, A: Factor, G: Factor, damping: float) -> Self:
        """Return the inverse of two factors; may raise `CurvatureError`."""
        mean_A, mean_G = A.mean_eigenvalue(), G.mean_eigenvalue()
        tiny = torch.finfo(torch.float32).tiny
        pi = (mean_A.clamp(min=tiny) / mean_G.clamp(min=tiny)).sqrt()
        return cls(A.inverse(damping**0.5 * pi), G.inverse(damping**0.5 / pi))

    def apply(self, gradient: Tensor) -> Tensor:
        """Return the inverse applied to a gradient `[blocks, out, in]`."""
        return multiply_right(multiply_left(self.G, gradient), self.A)

    def whitening(self, A: Factor, G: Factor) -> Whitening:
        """Return the roots of both inverse factors; may raise `CurvatureError`."""
        return Whitening.of(A.joined(root_of(self.A)), G.joined(root_of(self.G)))


class EigenbasisInverse(NamedTuple):
    """(A ⊗ G + λ I)^-1: diagonal in the basis Q_A ⊗ Q_G (George et al. 2018, eq. 9, with the factors' eigenvalues).

    A basis of None stands for the unit matrix.
    """

    Q_A: Tensor | None
    Q_G: Tensor | None
    scales: Tensor

    @classmethod
    def of(cls, A: Factor, G: Factor, damping: float) -> Self:
        """Return the inverse of two factors; may raise `CurvatureError`."""
        values_A, Q_A = A.eigen()
        values_G, Q_G = G.eigen()
        return cls(Q_A, Q_G, 1 / (values_G.unsqueeze(-1) * values_A.unsqueeze(-2) + damping))

    def apply(self, gradient: Tensor) -> Tensor:
        """Return the inverse applied to a gradient `[blocks, out, in]`."""
        rotated = multiply_right(multiply_left(None if self.Q_G is None else self.Q_G.mT, gradient), self.Q_A)
        scaled = rotated * self.scales
        return multiply_right(multiply_left(self.Q_G, scaled), None if self.Q_A is None else self.Q_A.mT)

    def whitening(self, A: Factor, G: Factor) -> Whitening:  # noqa: ARG002
        """Return the roots of a Kronecker product that is close to the inverse, which is none itself.

        Its eigenvalues are the products of two numbers, one for each row and one for each column of `scales`, whose
        logarithms are those of `scales` in the least squares.
        """
        logarithms = precise(self.scales).clamp(min=torch.finfo(torch.float32).tiny).log()
        middle = logarithms.mean(dim=(1, 2)).unsqueeze(-1) / 2
        values_A, values_G = (logarithms.mean(dim=dim) - middle for dim in (1, 2))
        return Whitening.of(
            root_in_basis(self.Q_A, values_A.exp().to(self.scales)),
            root_in_basis(self.Q_G, values_G.exp().to(self.scales)),
        )


class KroneckerEstimator(Estimator):
    """The curvature A ⊗ G of each block, with `A` `[blocks, in, in]` and `G` `[blocks, out, out]`."""

    def __init__(self, shape: MatrixShape, options: EstimatorOptions) -> None:
        super().__init__(shape, options)
        widest = options.widest_factor if options.inversion == "cholesky" else None
        self.A = Factor(shape.blocks, shape.in_features, is_diagonal=shape.one_hot, widest=widest)
        self.G = Factor(shape.blocks, shape.out_features, widest=widest)
        self._inverse_type = FactoredInverse if options.inversion == "cholesky" else EigenbasisInverse
        self._inverse: FactoredInverse | EigenbasisInverse | None = None

    @abstractmethod
    def update(self, statistics: Mapping[str, Tensor], gradient: Tensor) -> None:
        """Move the running factors: see `Estimator.update`."""

    @property
    def trace(self) -> float:
        """Trace of A ⊗ G, summed over the blocks."""
        if not self.updates:
            return 0.0
        of_blocks = self.A.mean_eigenvalue() * self.G.mean_eigenvalue()
        return float(of_blocks.sum()) * self.shape.in_features * self.shape.out_features

    def diagonal(self) -> Tensor | None:
        """Return the diagonal of A ⊗ G, `[blocks, out, in]`."""
        return self.G.diagonal.unsqueeze(-1) * self.A.diagonal.unsqueeze(-2) if self.updates else None

    def refresh(self, damping: float) -> None:
        """Invert anew: see `Estimator.refresh`."""
        self._inverse = self._inverse_type.of(self.A, self.G, damping)

    def precondition(self, gradient: Tensor) -> Tensor:
        """Return the damped inverse of A ⊗ G applied to `gradient`."""
        if self._inverse is None:
            raise RuntimeError("the estimator was not refreshed yet")
        return self._inverse.apply(gradient)

    def whitening(self) -> Whitening | None:
        """Return roots of the inverse: see `Estimator.whitening`."""
        return None if self._inverse is None else self._inverse.whitening(self.A, self.G)

    def state_dict(self) -> dict[str, Any]:
        """Return factors, their inverse and the count of updates."""
        inverse = None if self._inverse is None else self._inverse._asdict()
        return {"updates": self.updates, "A": self.A.state_dict(), "G": self.G.state_dict(), "inverse": inverse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.updates = state["updates"]
        self.A.load_state_dict(state["A"])
        self.G.load_state_dict(state["G"])
        self._inverse = None if state["inverse"] is None else self._inverse_type(**state["inverse"])
