"""Captures each layer's inputs and pre-activation gradients while the user's own forward and backward run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edge_client.curvature.layers import Layer


class LayerCapture:
    """Collects the inputs and output gradients of one layer's uses between two calls of `take`."""

    def __init__(self, layer: Layer, is_wanted: Callable[[], bool]) -> None:
        self.layer = layer
        self._is_wanted = is_wanted
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._handle = layer.module.register_forward_hook(self._after_forward)

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Return inputs `[batch, shared, in]` and per-sample gradients `[batch, shared, out]`, or None.

        A module that was used several times in the forward counts as sharing its weight between the uses.
        """
        pairs, self._pairs = self._pairs, []
        if not pairs:
            return None
        a = [self.layer.inputs(x) for x, _ in pairs]
        # The loss is a mean over the batch; the estimators' format wants each sample's own.
        g = [self.layer.output_gradients(gradient) * len(gradient) for _, gradient in pairs]
        return torch.cat(a, dim=1), torch.cat(g, dim=1)

    def remove(self) -> None:
        """Stop capturing."""
        self._handle.remove()

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        if not self._is_wanted() or not isinstance(output, Tensor) or not output.requires_grad:
            return
        output.register_hook(partial(self._after_backward, args[0].detach()))  # type: ignore[no-untyped-call]

    def _after_backward(self, x: Tensor, gradient: Tensor) -> None:
        self._pairs.append((x, gradient.detach()))
