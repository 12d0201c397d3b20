"""What torch.amp.GradScaler tells an optimizer that handles scaled gradients itself.

With `_step_supports_amp_scaling` the scaler sets `found_inf`, and `grad_scale` unless the user has called `unscale_`,
before it calls `step` (torch/amp/grad_scaler.py).
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edge_client.sync.plan import Report, SyncPlan


class LossScale(NamedTuple):
    """How a step's gradients were scaled."""

    factor: float = 1.0
    """What the loss was multiplied with."""
    is_overflow: bool = False
    """Whether a gradient overflowed, so that the batch is to be skipped."""


class LossScaleWatch:
    """Finds the scale where the user has unscaled the gradients already: by one gradient, as backward had it."""

    def __init__(self) -> None:
        self._witness: Tensor | None = None
        self._norm: Tensor | None = None

    def note(self, parameter: Tensor) -> None:
        """Note the gradient of the parameter that is first in a backward, each time that it comes."""
        if (self._witness is None or self._witness is parameter) and parameter.grad is not None:
            self._witness, self._norm = parameter, parameter.grad.norm()

    def forget(self) -> None:
        """Let the next batch begin."""
        self._witness = self._norm = None

    def unscale(self, optimizer: Any) -> LossScale | None:
        """Return what a scaler has told, with the gradients unscaled; None if there is no scaler."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None:
            return None
        if float(found_inf):
            return LossScale(is_overflow=True)
        scale = getattr(optimizer, "grad_scale", None)
        if scale is None:
            return LossScale(self._unscaled_by_user())
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_div_(gradients, float(scale))
        return LossScale(float(scale))

    def added_to(self, report: Report, optimizer: Any, sync: SyncPlan) -> Report:
        """Return a report with what a scaler has told, and the gradients unscaled.

        Raises:
            RuntimeError: the gradients have left with the scale in them; the batch is given up.

        """
        scaled = self.unscale(optimizer)
        if scaled is None:
            return report
        if sync.has_left:
            with suppress(RuntimeError):  # the text below says more
                sync.discard()
            raise RuntimeError(
                "torch.amp.GradScaler multiplies the loss, and the gradients have left for the other devices with "
                "its factor in them: let the step send them, EveryBatch(exchange, overlap=False)"
            )
        return replace(report, loss_scale=scaled.factor, is_skipped=scaled.is_overflow)

    def _unscaled_by_user(self) -> float:
        if self._witness is None or self._witness.grad is None or self._norm is None:
            return 1.0
        now = float(self._witness.grad.norm())
        return float(self._norm) / now if now > 0 else 1.0
