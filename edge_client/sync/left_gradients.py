"""Gradients that have left for the other devices while backward was on: they are not to be changed any more."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor


class _Left(NamedTuple):
    """Which gradient has left: an edit in place raises the version, and another tensor has another id."""

    tensor: int
    version: int


class LeftGradients:
    """Those of the batch that is on, by their parameters."""

    def __init__(self) -> None:
        self._left: dict[Tensor, _Left] = {}

    def __bool__(self) -> bool:
        return bool(self._left)

    def note(self, parameters: Iterable[Tensor]) -> None:
        """Take note that the gradients of parameters have left."""
        for parameter in parameters:
            if parameter.grad is not None:
                self._left[parameter] = _Left(id(parameter.grad), parameter.grad._version)

    def check_unchanged(self, names: Mapping[Tensor, str]) -> None:
        """Check that what has left is what is there.

        Raises:
            RuntimeError: a gradient was changed since; the text names it and the way that works.

        """
        for parameter, left in self._left.items():
            gradient = parameter.grad
            if gradient is None or _Left(id(gradient), gradient._version) != left:
                raise RuntimeError(
                    f"the gradient of {names[parameter]!r} was changed after it had left, during backward, for "
                    "the other devices. To clip or edit gradients, or to use torch.amp.GradScaler, let the step send "
                    "them: EveryBatch(exchange, overlap=False); to clip, EveryBatch(exchange, clip_grad_norm=...) does"
                )
