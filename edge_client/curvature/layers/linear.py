"""Linear layers."""

from functools import cached_property

from torch import Tensor, nn

from edge_client.curvature.inputs import DenseInputs
from edge_client.curvature.layers.base import Layer, MatrixShape


class LinearLayer(Layer):
    """`nn.Linear`, with any leading dimensions: the first counts samples, the others share the weight."""

    module: nn.Linear

    @property
    def sample_dims(self) -> int:
        """A vector is one sample."""
        return 1

    @cached_property
    def shape(self) -> MatrixShape:
        """One block."""
        return MatrixShape(1, self.module.out_features, self.module.in_features + self.has_bias)

    def inputs(self, x: Tensor) -> DenseInputs:
        """Return the input as `[1, batch, shared, in]`."""
        return self._dense(x.reshape(1, len(x), -1, x.shape[-1]))

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the output as `[1, batch, shared, out]`."""
        return gradient.reshape(1, len(gradient), -1, gradient.shape[-1])
