"""Convolutions: each position of the output is a use of the same matrix on a patch of the input."""

from functools import cached_property

import torch.nn.functional as F
from torch import Tensor, nn

from edge_client.curvature.layers.base import Layer, MatrixShape
from edge_client.curvature.patches import PatchInputs, Window


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

    def inputs(self, x: Tensor) -> PatchInputs:
        """Return the patches, as `[groups, batch, positions, in]`."""
        conv = self.module
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = x.to(self.weight.dtype)
        if any(conv._reversed_padding_repeated_twice):
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        window = Window(tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation))
        return PatchInputs(x, window, conv.groups, has_bias=self.has_bias)

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the output as `[groups, batch, positions, out]`."""
        by_channel = gradient.flatten(2).transpose(0, 1).contiguous()
        return by_channel.view(self.module.groups, -1, *by_channel.shape[1:]).permute(0, 2, 3, 1)
