"""The common format of all layers, so that estimators know no layer types.

Every supported layer is a batch of matrix products, one for each block: its inputs become
`[blocks, batch, shared, in]` and the gradients of its pre-activations `[blocks, batch, shared, out]`, where `shared`
counts the uses of the weight within one sample (positions of a convolution, tokens of a sequence; 1 for a plain
Linear). A bias is a last input that is always 1. The gradient of the layer is then a batch of matrices
`[blocks, out, in]`. Most layers are one block; a grouped convolution has a block for each group, and a normalisation
layer one for each channel.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_client.curvature.inputs import DenseInputs, Inputs


@dataclass(frozen=True)
class MatrixShape:
    """Shape `[blocks, out, in]` of a layer's gradient; `one_hot` says that an input picks one column."""

    blocks: int
    out_features: int
    in_features: int
    one_hot: bool = False

    @property
    def of_gradient(self) -> tuple[int, int, int]:
        """As a tuple."""
        return (self.blocks, self.out_features, self.in_features)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.blocks * self.out_features * self.in_features


class Layer(ABC):
    """One module in the common format.

    Args:
        name: of the module in the model.
        module: has a `weight`, and perhaps a `bias`.

    """

    is_personal = False
    """Whether this device keeps it for itself: its curvature and its trust region are then apart from the others'."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.weight: nn.Parameter = module.weight  # type: ignore[assignment]
        self.parameters = {"weight": self.weight}
        bias = getattr(module, "bias", None)
        self.has_bias = isinstance(bias, nn.Parameter) and bias.requires_grad
        if isinstance(bias, nn.Parameter) and self.has_bias:
            self.parameters["bias"] = bias

    @property
    def sample_dims(self) -> int | None:
        """Dimensions of an input that is one sample without a batch; None if the module takes none such."""
        return None

    @property
    @abstractmethod
    def shape(self) -> MatrixShape:
        """Shape of the gradient as matrices."""

    @abstractmethod
    def inputs(self, x: Tensor) -> Inputs:
        """Return the module's input in the common format, the bias's constant input included."""

    @abstractmethod
    def output_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the module's output as `[blocks, batch, shared, out]`."""

    def to_matrix(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return the gradients of "weight" and "bias" as matrices `[blocks, out, in]`."""
        blocks, out = self.shape.blocks, self.shape.out_features
        weight = self.weight_matrix(gradients["weight"])
        return torch.cat([weight, gradients["bias"].reshape(blocks, out, 1)], dim=2) if self.has_bias else weight

    def from_matrix(self, matrix: Tensor) -> dict[str, Tensor]:
        """Undo `to_matrix`."""
        if not self.has_bias:
            return {"weight": matrix.reshape(self.weight.shape)}
        return {
            "weight": matrix[..., :-1].reshape(self.weight.shape),
            "bias": matrix[..., -1].reshape(self.parameters["bias"].shape),
        }

    def weight_matrix(self, gradient: Tensor) -> Tensor:
        """Return the gradient of "weight" alone as matrices `[blocks, out, in]`."""
        return gradient.reshape(self.shape.blocks, self.shape.out_features, -1)

    def reaching(self, directions: Tensor) -> Tensor:
        """Return directions of inputs `[in, n]` without those of inputs that never change the weight."""
        return directions

    def _dense(self, rows: Tensor) -> DenseInputs:
        """Return rows `[blocks, batch, shared, features]` as inputs in the weight's dtype."""
        return DenseInputs(rows.to(self.weight.dtype), has_bias=self.has_bias)
