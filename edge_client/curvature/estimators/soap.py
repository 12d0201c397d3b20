"""The inverse Hessian's root from the synchronised gradient alone: identical on all devices at no extra traffic.

The factors are Shampoo's (Gupta, Koren & Singer 2018, https://arxiv.org/abs/1802.09568): running means of D D^T and
D^T D of the gradient D. In their eigenbasis the gradient is divided by the root of its running second moment, as in
SOAP (Vyas et al. 2024, https://arxiv.org/abs/2409.11321, algorithm 3).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from edge_client.curvature.estimators.base import Estimator, EstimatorDefaults, EstimatorOptions
from edge_client.curvature.factor import Factor, multiply_left, multiply_right
from edge_client.curvature.inputs import Inputs
from edge_client.curvature.layers import MatrixShape

_LARGEST = 4096
"""A side with more rows keeps the unit matrix for its basis: a decomposition would take too long."""


class Soap(Estimator):
    """Divides the gradient by the root of its second moment, in the eigenbasis of Shampoo's factors."""

    name = "soap"
    defaults = EstimatorDefaults(lr=0.003, momentum=0.9, damping=1e-6, kl_clip=float("inf"), update_clip=0.05)
    gradient_degrees: ClassVar[Mapping[str, int]] = {}

    def __init__(self, shape: MatrixShape, options: EstimatorOptions) -> None:
        super().__init__(shape, options)
        self.left = self._side(shape.out_features)
        self.right = None if shape.one_hot else self._side(shape.in_features)
        self.second_moment = torch.zeros(0)
        """Running mean of the squared gradient in the eigenbasis, `[blocks, out, in]`."""
        self._left_basis: Tensor | None = None
        self._right_basis: Tensor | None = None
        self._damping = 0.0

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """Nothing is exchanged."""
        return {}

    def statistics(self, a: Inputs, g: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return nothing: the synchronised gradient is all that is needed."""
        return {}

    def update(self, statistics: Mapping[str, Tensor], gradient: Tensor) -> None:  # noqa: ARG002
        """Move both factors, and the second moment in the basis that is in use."""
        decay = self.next_decay()
        if self.left is not None:
            self.left.move(gradient @ gradient.mT, decay)
        if self.right is not None:
            self.right.move(gradient.mT @ gradient, decay)
        if self.updates == 1:
            self._find_bases()
            self.second_moment = self._rotated(gradient).square()
        else:
            self.second_moment = torch.lerp(self._rotated(gradient).square(), self.second_moment, decay)

    @property
    def trace(self) -> float:
        """Sum of the second moment."""
        return float(self.second_moment.sum())

    def refresh(self, damping: float) -> None:
        """Find the eigenbases anew: see `Estimator.refresh`."""
        self._damping = damping
        if self.updates > 1:
            self._find_bases()

    def precondition(self, gradient: Tensor) -> Tensor:
        """Return the gradient divided by (second moment + damping)^(1/2) in the eigenbasis."""
        scaled = self._rotated(gradient) / (self.second_moment + self._damping).sqrt()
        left, right = self._left_basis, self._right_basis
        return multiply_right(multiply_left(left, scaled), None if right is None else right.mT)

    def state_dict(self) -> dict[str, Any]:
        """Return factors, bases, second moment, damping and the count of updates."""
        return {
            "updates": self.updates,
            "left": None if self.left is None else self.left.state_dict(),
            "right": None if self.right is None else self.right.state_dict(),
            "left_basis": self._left_basis,
            "right_basis": self._right_basis,
            "second_moment": self.second_moment,
            "damping": self._damping,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.updates, self.second_moment, self._damping = state["updates"], state["second_moment"], state["damping"]
        self._left_basis, self._right_basis = state["left_basis"], state["right_basis"]
        for side, saved in ((self.left, state["left"]), (self.right, state["right"])):
            if side is not None:
                side.load_state_dict(saved)

    def _side(self, size: int) -> Factor | None:
        return Factor(self.shape.blocks, size) if size <= _LARGEST else None

    def _find_bases(self) -> None:
        left = None if self.left is None else self.left.eigen()[1]
        right = None if self.right is None else self.right.eigen()[1]
        self._left_basis, self._right_basis = left, right

    def _rotated(self, gradient: Tensor) -> Tensor:
        left = None if self._left_basis is None else self._left_basis.mT
        return multiply_right(multiply_left(left, gradient), self._right_basis)
