"""Layers in one common format, so that estimators know no layer types.

Every supported layer is a matrix product: its inputs become `[batch, shared, in]` and the gradients of its
pre-activations `[batch, shared, out]`, where `shared` counts the uses of the weight within one sample (positions of a
convolution, tokens of a sequence; 1 for a plain Linear). A bias is a last input that is always 1. The gradient of the
layer is then a matrix `[out, in]`. A new layer type is one class here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(ABC):
    """One module in the common format."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.weight: nn.Parameter = module.weight  # type: ignore[assignment]
        bias = module.bias
        self.has_bias = isinstance(bias, nn.Parameter) and bias.requires_grad
        self.parameters = {"weight": self.weight}
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            self.parameters["bias"] = bias

    @property
    def out_features(self) -> int:
        """Rows of the gradient matrix."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the gradient matrix, with that of the bias."""
        return self.weight[0].numel() + self.has_bias

    def inputs(self, x: Tensor) -> Tensor:
        """Return the module's input as `[batch, shared, in]`, with a column of ones for the bias."""
        rows = self._inputs(x)
        return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1) if self.has_bias else rows

    @abstractmethod
    def _inputs(self, x: Tensor) -> Tensor:
        """Return the module's input as `[batch, shared, in]`, without the bias."""

    @abstractmethod
    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the module's output as `[batch, shared, out]`."""

    def to_matrix(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return the gradients of "weight" and "bias" as one matrix `[out, in]`."""
        weight = gradients["weight"].reshape(self.out_features, -1)
        return torch.cat([weight, gradients["bias"].unsqueeze(1)], dim=1) if self.has_bias else weight

    def from_matrix(self, matrix: Tensor) -> dict[str, Tensor]:
        """Undo `to_matrix`."""
        if not self.has_bias:
            return {"weight": matrix.reshape(self.weight.shape)}
        return {"weight": matrix[:, :-1].reshape(self.weight.shape), "bias": matrix[:, -1]}


class LinearLayer(Layer):
    """`nn.Linear`, with any leading dimensions."""

    def _inputs(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, x.shape[-1])

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the output as `[batch, shared, out]`."""
        return gradient.reshape(len(gradient), -1, gradient.shape[-1])


class Conv2dLayer(Layer):
    """`nn.Conv2d` without groups, with any stride, padding and dilation."""

    module: nn.Conv2d

    def _inputs(self, x: Tensor) -> Tensor:
        conv = self.module
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
            padding: int | tuple[int, ...] = 0
        else:
            padding = conv.padding
        # F.unfold takes float32 and float64 only.
        patches = F.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)
        return patches.transpose(1, 2)

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the output as `[batch, positions, out]`."""
        return gradient.flatten(2).transpose(1, 2)


def supported_layer(name: str, module: nn.Module) -> Layer | None:
    """Return a module in the common format, or None if it is not supported (or frozen)."""
    # Exact types: a subclass may compute something else in its forward.
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.requires_grad:
        return None
    if type(module) is nn.Linear:
        return LinearLayer(name, module)
    if type(module) is nn.Conv2d and module.groups == 1:
        return Conv2dLayer(name, module)
    return None
