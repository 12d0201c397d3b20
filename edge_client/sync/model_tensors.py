"""A model's tensors by name: what is trained, what is averaged, and what is put aside for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ModelTensors:
    """Those of a model, as they are now; parameters that are frozen now and not later are to be taken in anew."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        """Of the parameters that are trained."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Those that are trained."""
        return {name: parameter for parameter, name in self.names.items()}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Those that can be averaged."""
        return {name: buffer for name, buffer in self._model.named_buffers() if buffer.is_floating_point()}

    @property
    def all(self) -> dict[str, Tensor]:
        """Parameters that are trained, and every buffer."""
        return self.parameters | dict(self._model.named_buffers())


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that share no memory."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give tensors the values that there are for their names."""
    for name, value in values.items():
        if name in tensors:
            tensors[name].copy_(value)


@contextmanager
def held(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let tensors have, for a while, the values that there are for their names."""
    kept = copies({name: tensor for name, tensor in tensors.items() if name in values})
    put(tensors, values)
    try:
        yield
    finally:
        put(tensors, kept)
