"""K-FAC: the curvature of a layer as a Kronecker product of two small matrices.

Martens & Grosse 2015 (https://arxiv.org/abs/1503.05671) for Linear, Grosse & Martens 2016
(https://arxiv.org/abs/1602.01407) for convolutions, Eschenhagen et al. 2023 (https://arxiv.org/abs/2311.00636) for
other shared weights.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from edge_client.curvature.estimators.base import EstimatorDefaults
from edge_client.curvature.estimators.kronecker import KroneckerEstimator
from edge_client.curvature.inputs import Inputs, gradient_second_moment


class Kfac(KroneckerEstimator):
    """Factors A from layer inputs and G from pre-activation gradients."""

    name = "kfac"
    defaults = EstimatorDefaults(lr=0.1, momentum=0.7, damping=0.003, kl_clip=0.003, update_clip=0.05)
    gradient_degrees: ClassVar[Mapping[str, int]] = {"A": 0, "G": 2}

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """Both factors as packed upper triangles; A is a diagonal for one-hot inputs."""
        return {"A": self.A.packed_shape, "G": self.G.packed_shape}

    @property
    def statistic_structures(self) -> dict[str, str]:
        """Those of the factors."""
        return {"A": self.A.structure, "G": self.G.structure}

    def statistics(self, a: Inputs, g: Tensor) -> dict[str, Tensor]:
        """Return both factors of a batch, packed."""
        sharing = self.options.weight_sharing
        return {
            "A": self.A.pack(a.second_moment(sharing, self.A.parts)),
            "G": self.G.pack(gradient_second_moment(g, sharing, self.G.parts)),
        }

    def update(self, statistics: Mapping[str, Tensor], gradient: Tensor) -> None:  # noqa: ARG002
        """Move the factors' running means towards those of a batch."""
        decay = self.next_decay()
        self.A.update(statistics["A"], decay)
        self.G.update(statistics["G"], decay)
