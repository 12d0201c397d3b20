"""Convolutions: each position of the output is a use of the same matrix on a patch of the input."""

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

    @property
    def shape(self) -> MatrixShape:
        """A block for each group; a depthwise convolution has one for each channel."""
        groups = self.module.groups
        return MatrixShape(groups, self.module.out_channels // groups, self.weight[0].numel() + self.has_bias)

    def inputs(self, x: Tensor) -> DenseInputs:
        """Return the patches as `[groups, batch, positions, in]`."""
        conv = self.module
        padding: tuple[int, ...] = (0,) * len(conv.kernel_size)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        else:
            padding = tuple(conv.padding)
        kernel, dilation, stride = conv.kernel_size, conv.dilation, conv.stride
        if isinstance(conv, nn.Conv1d):  # as an image of height 1
            x = x.unsqueeze(2)
            kernel, dilation, stride, padding = (1, *kernel), (1, *dilation), (1, *stride), (0, *padding)
        patches = F.unfold(x.to(self.weight.dtype), kernel, dilation, padding, stride)
        # Channels come before the kernel's positions in a patch, so those of a group are together.
        return self._dense(self._by_group(patches))

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the output as `[groups, batch, positions, out]`."""
        return self._by_group(gradient.flatten(2))

    def _by_group(self, x: Tensor) -> Tensor:
        """Return a tensor `[batch, channels, positions]` as `[groups, batch, positions, channels of a group]`."""
        batch, _, positions = x.shape
        return x.view(batch, self.module.groups, -1, positions).permute(1, 0, 3, 2)
