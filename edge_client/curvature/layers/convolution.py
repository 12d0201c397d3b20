"""Convolutions: each position of the output is a use of the same matrix on a patch of the input."""

from functools import cached_property
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from edge_client.curvature.inputs import DenseInputs
from edge_client.curvature.layers.base import Layer, MatrixShape


class ConvolutionLayer(Layer):
    """`nn.Conv1d` and `nn.Conv2d`, with any stride, padding and dilation, and a block for each group."""

    module: nn.Conv1d | nn.Conv2d

    @property
    def sample_dims(self) -> int:
        """One image without a batch has its channels first."""
        return 1 + len(self.module.kernel_size)

    @cached_property
    def shape(self) -> MatrixShape:
        """A block for each group; a depthwise convolution has one for each channel."""
        groups = self.module.groups
        return MatrixShape(groups, self.module.out_channels // groups, self.weight[0].numel() + self.has_bias)

    def inputs(self, x: Tensor) -> DenseInputs:
        """Return the patches as `[groups, batch, positions, in]`."""
        conv = self.module
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = x.to(self.weight.dtype)
        if any(conv._reversed_padding_repeated_twice):
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        for dim, (size, dilation, stride) in enumerate(
            zip(conv.kernel_size, conv.dilation, conv.stride, strict=True), start=2
        ):
            x = x.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
        # Now [batch, channels, *positions, *kernel]. One copy puts the kernel's positions before the batch, which is
        # faster than F.unfold; channels come before them, so those of a group are together.
        kernel = range(x.dim() - len(conv.kernel_size), x.dim())
        positions = range(2, kernel.start)
        patches = x.permute(1, *kernel, 0, *positions).reshape(
            self.shape.blocks, -1, len(x), prod(x.shape[dim] for dim in positions)
        )
        return self._dense(patches.permute(0, 2, 3, 1))

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the output as `[groups, batch, positions, out]`."""
        by_channel = gradient.flatten(2).transpose(0, 1).contiguous()
        return by_channel.view(self.module.groups, -1, *by_channel.shape[1:]).permute(0, 2, 3, 1)
