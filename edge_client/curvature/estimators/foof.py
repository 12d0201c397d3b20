"""FOOF: the curvature from layer inputs alone.

Benzing 2022, "Gradient Descent on Neurons and its Link to Approximate Second-Order Optimization"
(https://arxiv.org/abs/2201.12250), eq. 3.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from edge_client.curvature.estimators.base import Estimator, EstimatorDefaults, EstimatorOptions
from edge_client.curvature.factor import Factor, multiply_right
from edge_client.curvature.inputs import Inputs
from edge_client.curvature.layers import MatrixShape
from edge_client.curvature.whitening import Whitening, root_of


class Foof(Estimator):
    """The curvature A ⊗ I: a step that changes the layer's outputs along their gradient, whatever its inputs."""

    name = "foof"
    defaults = EstimatorDefaults(lr=1.0, momentum=0.7, damping=0.003, kl_clip=float("inf"), update_clip=0.05)
    gradient_degrees: ClassVar[Mapping[str, int]] = {"A": 0}

    def __init__(self, shape: MatrixShape, options: EstimatorOptions) -> None:
        super().__init__(shape, options)
        self.A = Factor(shape.blocks, shape.in_features, is_diagonal=shape.one_hot, widest=options.widest_factor)
        self._inverse: Tensor | None = None

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """The factor A as a packed upper triangle, or a diagonal for one-hot inputs."""
        return {"A": self.A.packed_shape}

    @property
    def statistic_structures(self) -> dict[str, str]:
        """That of the factor."""
        return {"A": self.A.structure}

    def statistics(self, a: Inputs, g: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the factor A of a batch, packed."""
        return {"A": self.A.pack(a.second_moment(self.options.weight_sharing, self.A.parts))}

    def update(self, statistics: Mapping[str, Tensor], gradient: Tensor) -> None:  # noqa: ARG002
        """Move the running factor."""
        self.A.update(statistics["A"], self.next_decay())

    @property
    def trace(self) -> float:
        """Trace of A ⊗ I, summed over the blocks."""
        if not self.updates:
            return 0.0
        return float(self.A.mean_eigenvalue().sum()) * self.shape.in_features * self.shape.out_features

    def diagonal(self) -> Tensor | None:
        """Return the diagonal of A ⊗ I, `[blocks, 1, in]`."""
        return self.A.diagonal.unsqueeze(-2) if self.updates else None

    def refresh(self, damping: float) -> None:
        """Invert anew: see `Estimator.refresh`."""
        self._inverse = self.A.inverse(torch.full((self.shape.blocks,), damping, device=self.A.value.device))

    def precondition(self, gradient: Tensor) -> Tensor:
        """Return gradient (A + damping I)^-1."""
        return multiply_right(gradient, self._inverse)

    def whitening(self) -> Whitening | None:
        """Return the root of the inverse factor, and the unit matrix: see `Estimator.whitening`."""
        if self._inverse is None:
            return None
        unit = self._inverse.new_ones(self.shape.blocks, self.shape.out_features)
        return Whitening.of(self.A.joined(root_of(self._inverse)), unit)

    def state_dict(self) -> dict[str, Any]:
        """Return the factor, its inverse and the count of updates."""
        return {"updates": self.updates, "A": self.A.state_dict(), "inverse": self._inverse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.updates, self._inverse = state["updates"], state["inverse"]
        self.A.load_state_dict(state["A"])
