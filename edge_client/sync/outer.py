"""The outer step: what the devices do with the mean of what their local steps moved them by.

Nesterov's momentum over rounds, as in DiLoCo (Douillard et al. 2023, https://arxiv.org/abs/2311.08105, algorithm 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from edgenewton.common.options import check_number
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """How far the mean is followed.

    Raises:
        OptionError: an option has an impossible value; the text names it.

    """

    outer_lr: float = 1.0
    """Factor of the mean of the devices' moves; 1 without momentum is plain averaging of the parameters."""
    outer_momentum: float = 0.0
    """Weight of the past means."""

    def __post_init__(self) -> None:
        check_number("outer_lr", self.outer_lr, above=0)
        check_number("outer_momentum", self.outer_momentum, at_least=0, below=1)


class OuterStep:
    """Moves tensors in place, by name, along the mean d of a round: v <- m v + d, then x <- x + lr (d + m v)."""

    def __init__(self, options: Outer) -> None:
        self._options = options
        self._velocity: dict[str, Tensor] = {}

    @torch.no_grad()
    def move(self, name: str, tensor: Tensor, mean: Tensor) -> None:
        """Take a round's step of one tensor."""
        lr, momentum = self._options.outer_lr, self._options.outer_momentum
        mean = mean.to(tensor)
        if momentum:
            before = self._velocity.get(name)
            velocity = mean if before is None else momentum * before.to(tensor) + mean
            self._velocity[name] = velocity
            mean = mean + momentum * velocity
        tensor.add_(mean, alpha=lr)

    def state_dict(self) -> dict[str, Any]:
        """Return the velocities, by name."""
        return dict(self._velocity)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self._velocity = {name: velocity.clone() for name, velocity in state.items()}
