"""Normalisation layers: each channel's scale and shift are a block of their own, so the curvature is block-diagonal.

A channel is a matrix product of its scale and shift `[1, 2]` with its normalised input and 1.
"""

from abc import abstractmethod
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_client.curvature.inputs import DenseInputs
from edge_client.curvature.layers.base import Layer, MatrixShape


class NormalisationLayer(Layer):
    """A layer that normalises its input and then scales and shifts each channel."""

    @cached_property
    def shape(self) -> MatrixShape:
        """A block for each element of the weight."""
        return MatrixShape(self.weight.numel(), 1, 1 + self.has_bias)

    def inputs(self, x: Tensor) -> DenseInputs:
        """Return the normalised input as `[channels, batch, positions, 1 or 2]`."""
        return self._dense(self._by_channel(self._normalised(x.to(self.weight.dtype))))

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the output as `[channels, batch, positions, 1]`."""
        return self._by_channel(gradient)

    @abstractmethod
    def _normalised(self, x: Tensor) -> Tensor:
        """Return the input as it is before scale and shift."""

    def _by_channel(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape as `[channels, batch, positions, 1]`."""
        return x.flatten(2).permute(1, 0, 2).unsqueeze(-1) if x.dim() > 2 else x.mT[..., None, None]


class BatchNormLayer(NormalisationLayer):
    """`nn.BatchNorm1d` and `nn.BatchNorm2d`; in training they normalise with the batch's own moments."""

    module: nn.BatchNorm1d | nn.BatchNorm2d

    def _normalised(self, x: Tensor) -> Tensor:
        norm = self.module
        uses_batch = norm.training or norm.running_mean is None
        running = (None, None) if uses_batch else (norm.running_mean, norm.running_var)
        return F.batch_norm(x, *running, training=uses_batch, eps=norm.eps)


class GroupNormLayer(NormalisationLayer):
    """`nn.GroupNorm`."""

    module: nn.GroupNorm

    def _normalised(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.module.num_groups, eps=self.module.eps)


class LayerNormLayer(NormalisationLayer):
    """`nn.LayerNorm` and `nn.RMSNorm`: the normalised dimensions are the channels, those before them positions."""

    module: nn.LayerNorm | nn.RMSNorm

    @property
    def sample_dims(self) -> int:
        """What is normalised together, without a batch."""
        return len(self.module.normalized_shape)

    def _normalised(self, x: Tensor) -> Tensor:
        shape = list(self.module.normalized_shape)
        if isinstance(self.module, nn.RMSNorm):
            return F.rms_norm(x, shape, eps=self.module.eps)
        return F.layer_norm(x, shape, eps=self.module.eps)

    def _by_channel(self, x: Tensor) -> Tensor:
        return torch.movedim(x.reshape(len(x), -1, self.weight.numel()), 2, 0).unsqueeze(-1)
