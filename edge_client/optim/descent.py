"""The update of parameters along directions, as in SGD with momentum and decoupled weight decay."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

State = MutableMapping[Tensor, dict[str, Any]]
"""What an optimizer remembers of each parameter."""


def descend(parameters: list[Tensor], directions: list[Tensor], group: dict[str, Any], state: State, lr: float) -> None:
    """Update parameters of one group, in place: B = momentum * B + P, then W -= lr * (B + weight_decay * W)."""
    if group["momentum"]:
        directions = _with_momentum(parameters, directions, group["momentum"], state)
    if group["weight_decay"]:
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
    torch._foreach_add_(parameters, directions, alpha=lr if group["maximize"] else -lr)


def _with_momentum(parameters: list[Tensor], directions: list[Tensor], momentum: float, of: State) -> list[Tensor]:
    """Take directions into the parameters' momentum, and return it."""
    buffers, added = [], []
    for parameter, direction in zip(parameters, directions, strict=True):
        state = of[parameter]
        if "momentum_buffer" in state:
            buffer = state["momentum_buffer"] = state["momentum_buffer"].to(parameter)  # the model may have moved
            added.append((buffer, direction))
        else:
            buffer = state["momentum_buffer"] = direction.clone()
        buffers.append(buffer)
    if added:
        before, new = map(list, zip(*added, strict=True))
        torch._foreach_mul_(before, momentum)
        torch._foreach_add_(before, new)
    return buffers
