"""The parts that a model is exchanged in: a layer's parameters as the matrices of the common format, or one parameter.

A layer's weight and bias travel as one matrix `[blocks, out, in]`, because its curvature is that of both together.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.layers import Layer
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.devices import to_device


@dataclass(frozen=True)
class Part:
    """One tensor that stands for some parameters."""

    name: str
    parameters: tuple[Tensor, ...]
    layer: Layer | None = None
    """Whose parameters they are, if they travel as its matrices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.layer.shape.of_gradient if self.layer is not None else tuple(self.parameters[0].shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def spec(self, kind: str) -> TensorSpec:
        """Return what describes the tensor to the exchange."""
        return TensorSpec(self.name, self.shape, str(self.parameters[0].dtype).removeprefix("torch."), kind)

    def gather(self, values: Mapping[Tensor, Tensor]) -> Tensor:
        """Return the tensor of what belongs to each parameter."""
        if self.layer is None:
            return values[self.parameters[0]]
        return self.layer.to_matrix({name: values[p] for name, p in self.layer.parameters.items()})

    def scatter(self, tensor: Tensor) -> dict[Tensor, Tensor]:
        """Undo `gather`."""
        tensor = to_device(tensor, self.parameters[0].device)
        if self.layer is None:
            return {self.parameters[0]: tensor}
        of_layer = self.layer.from_matrix(tensor)
        return {parameter: of_layer[name] for name, parameter in self.layer.parameters.items()}


def parts_of(names: Mapping[Tensor, str], layers: Iterable[PreconditionedLayer]) -> list[Part]:
    """Return the parts that parameters, by name, travel in, in the order of the parameters."""
    owners: dict[Tensor, Layer] = {p: state.layer for state in layers for p in state.layer.parameters.values()}
    parts: dict[object, Part] = {}
    for parameter, name in names.items():
        layer = owners.get(parameter)
        if layer is None or not set(layer.parameters.values()) <= names.keys():
            parts[parameter] = Part(name, (parameter,))
        elif layer not in parts:
            parts[layer] = Part(layer.name or "the model itself", tuple(layer.parameters.values()), layer)
    return list(parts.values())


@torch.no_grad()
def difference(part: Part, before: Mapping[Tensor, Tensor]) -> Tensor:
    """Return what a part's parameters were moved by since they were as in `before`."""
    return part.gather({parameter: parameter - before[parameter] for parameter in part.parameters})
