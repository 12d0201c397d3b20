"""What a model carries beside its parameters (running means of BatchNorm): averaged exactly, and counted."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

Buffers = Mapping[str, Tensor]


def take_buffers(model: nn.Module) -> Buffers:
    """Return copies of the buffers that are averaged; a count of batches is the same on all devices."""
    return {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}


@torch.no_grad()
def put_buffers(model: nn.Module, buffers: Buffers) -> None:
    """Write buffers into a model."""
    for name, buffer in model.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])


def mean_buffers(of_devices: Sequence[Buffers]) -> tuple[Buffers, int]:
    """Return the mean, and the bytes that it takes each way."""
    mean = {name: torch.stack([buffers[name] for buffers in of_devices]).mean(dim=0) for name in of_devices[0]}
    return mean, 4 * sum(tensor.numel() for tensor in mean.values())
