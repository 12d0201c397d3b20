"""FedAdam's server step, as Flower takes it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class ServerAdam(torch.optim.Optimizer):
    """Adam on the mean of the updates (Reddi et al. 2021, https://arxiv.org/abs/2003.00295).

    torch's own has another correction of the first steps, and adds its epsilon elsewhere.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": (beta1, beta2), "tau": tau})
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take a step."""
        self._steps += 1
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            # Flower counts its rounds from 1, and adds 1.
            exponent = self._steps + 1
            rate = group["lr"] * math.sqrt(1 - beta2**exponent) / (1 - beta1**exponent)
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
                state["mean"].lerp_(parameter.grad, 1 - beta1)
                state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                parameter.addcdiv_(state["mean"], state["square"].sqrt().add_(group["tau"]), value=-rate)
