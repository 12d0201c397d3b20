"""Embeddings: a matrix product with inputs that are one-hot, so the input factor is diagonal."""

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor, nn

from edge_client.curvature.inputs import OneHotInputs
from edge_client.curvature.layers.base import Layer, MatrixShape


class EmbeddingLayer(Layer):
    """`nn.Embedding`: its gradient matrix is the transpose of its weight's gradient."""

    module: nn.Embedding

    @property
    def sample_dims(self) -> int:
        """A number alone is one sample."""
        return 0

    @cached_property
    def shape(self) -> MatrixShape:
        """One block: a column for each entry of the dictionary."""
        return MatrixShape(1, self.module.embedding_dim, self.module.num_embeddings, one_hot=True)

    def inputs(self, x: Tensor) -> OneHotInputs:
        """Return the picked entries; those of one sample share the weight."""
        return OneHotInputs(x.reshape(len(x), -1), self.module.num_embeddings, self.weight.dtype)

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the output as `[1, batch, shared, out]`."""
        return gradient.reshape(1, len(gradient), -1, gradient.shape[-1])

    def weight_matrix(self, gradient: Tensor) -> Tensor:
        """Return the gradient of "weight" as `[1, out, in]`."""
        return gradient.mT.unsqueeze(0)

    def reaching(self, directions: Tensor) -> Tensor:
        """Return directions without that of the padding, which stays as it is."""
        if self.module.padding_idx is None:
            return directions
        directions = directions.clone()
        directions[self.module.padding_idx] = 0
        return directions

    def to_matrix(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return the gradient of "weight" as `[1, out, in]`."""
        return self.weight_matrix(gradients["weight"])

    def from_matrix(self, matrix: Tensor) -> dict[str, Tensor]:
        """Undo `to_matrix`."""
        return {"weight": matrix[0].mT}
