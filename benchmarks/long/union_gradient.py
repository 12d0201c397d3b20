"""The gradient of all devices' batches together, on one model: computed device by device, as in a real fleet."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs and targets of one device."""


class DivergedError(ArithmeticError):
    """The training has left the finite numbers."""


class UnionGradient:
    """Adds up in each parameter's `grad` the mean of the devices' gradients.

    Each device's batch passes through the model on its own. So a BatchNorm normalises with the statistics of that
    device's batch alone, and begins from the same running statistics on every device; those that remain are the
    devices' mean, which is what averaging the buffers at the end of a training gives: they follow the batches linearly.

    Args:
        model: what is trained.
        loss: the mean loss of a batch, from outputs and targets.

    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._model = model
        self._loss = loss
        self._buffers = list(model.buffers())

    def add(self, batches: Sequence[Batch], hold: Callable[[], AbstractContextManager[None]] = nullcontext) -> float:
        """Compute the gradient, and return the mean loss.

        Args:
            batches: one of each device, all of the same size.
            hold: is entered around every pass but the last.

        Raises:
            DivergedError: a loss is not finite.

        """
        before = [buffer.clone() for buffer in self._buffers]
        after: list[list[Tensor]] = []
        total = 0.0
        for number, (inputs, targets) in enumerate(batches, start=1):
            self._put(before)
            with nullcontext() if number == len(batches) else hold():
                loss = self._loss(self._model(inputs), targets) / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            if not math.isfinite(total):
                raise DivergedError(f"the loss of device {number - 1} is not finite")
            after.append([buffer.clone() for buffer in self._buffers])
        self._put([_mean(of_devices) for of_devices in zip(*after, strict=True)])
        return total

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean of what differs between devices; a count of batches is the same on all."""
    return torch.stack(tuple(values)).mean(dim=0) if values[0].is_floating_point() else values[0]
