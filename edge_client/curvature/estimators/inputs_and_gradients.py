"""The inverse Hessian from a device's layer inputs and the synchronised gradients, and from nothing else.

K-FAC's factor G is the mean of g g^T over the pre-activation gradients g. They never leave the device; what all devices
have in common is the synchronised gradient D = mean(g a^T), whose D D^T = mean_ij(g_i (a_i . a_j) g_j^T). Were the
samples' gradients independent with mean 0, its expectation would be mean(|a|^2 g g^T) / N, that is G tr(A) / N where
|a|^2 does not depend on g. So D D^T / tr(A) stands for G up to the number N of samples, which damping and trust region
cancel. Where the gradients have a mean, it counts that direction more than K-FAC does: near the minimum the estimate is
K-FAC's, far from it steps along the mean gradient are shorter.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from edge_client.curvature.estimators.base import EstimatorDefaults
from edge_client.curvature.estimators.kronecker import KroneckerEstimator
from edge_client.curvature.inputs import Inputs


class InputsAndGradients(KroneckerEstimator):
    """Right factor A from layer inputs, left factor D D^T / tr(A) from the synchronised gradient D."""

    name = "inputs_and_gradients"
    defaults = EstimatorDefaults(lr=0.1, momentum=0.7, damping=0.003, kl_clip=0.003, update_clip=0.05)
    gradient_degrees: ClassVar[Mapping[str, int]] = {"A": 0}

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

    def update(self, statistics: Mapping[str, Tensor], gradient: Tensor) -> None:
        """Move the running factors."""
        decay = self.next_decay()
        self.A.update(statistics["A"], decay)
        trace = self.A.mean_eigenvalue() * self.shape.in_features
        outer = gradient @ gradient.mT
        trace = trace.clamp(min=torch.finfo(torch.float32).tiny).to(outer.dtype)
        self.G.move(self.G.cut(outer / trace[:, None, None]), decay)
