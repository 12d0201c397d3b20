"""Captures each layer's inputs and pre-activation gradients while the user's own forward and backward run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from edge_client.curvature.hooks import Hook
from edge_client.curvature.inputs import Inputs, join_uses, regroup
from edge_client.curvature.layers import Layer


@dataclass(frozen=True)
class ForwardPass:
    """One forward of the model: its number within the step, and the samples in its batch."""

    number: int
    samples: int


@dataclass
class Use:
    """One use of a layer in a forward pass."""

    forward_pass: ForwardPass
    x: Tensor
    output: GradientEdge | None
    """Where `sample_gradients` takes the gradient; None where a hook does."""
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Captured:
    """What a layer saw in one forward pass, in the common format."""

    a: Inputs
    g: Tensor
    """Gradients for each sample's own loss, if the loss is a mean over the samples, `[blocks, batch, shared, out]`."""
    samples: int


class LayerCapture:
    """Collects the uses of one layer between two calls of `take`.

    Args:
        layer: the layer.
        current_pass: returns the forward pass that is on, or None when nothing is to be captured.
        takes_backward: whether the gradients are those of the user's own backward; else they are set by
            `sample_gradients`.

    """

    def __init__(self, layer: Layer, current_pass: Callable[[], ForwardPass | None], *, takes_backward: bool) -> None:
        self.layer = layer
        self.uses: list[Use] = []
        self._current_pass = current_pass
        self._takes_backward = takes_backward
        self._handle = layer.module.register_forward_hook(Hook(self._after_forward))

    def take(self) -> list[Captured]:
        """Return what was captured, an entry for each forward pass, and forget it.

        A module that was used several times in a forward pass counts as sharing its weight between the uses. With
        several passes (gradient accumulation) the loss of the step is taken to be the mean over all their samples.
        """
        uses, self.uses = [use for use in self.uses if use.gradient is not None], []
        passes = {use.forward_pass.number: use.forward_pass for use in uses}
        total = sum(forward_pass.samples for forward_pass in passes.values())
        captured = []
        for forward_pass in passes.values():
            together = [use for use in uses if use.forward_pass.number == forward_pass.number]
            a = join_uses([self._inputs(use) for use in together])
            g = torch.cat([self._gradients(use, total) for use in together], dim=2)
            captured.append(Captured(a, g, forward_pass.samples))
        return captured

    def remove(self) -> None:
        """Stop capturing."""
        self._handle.remove()

    def _inputs(self, use: Use) -> Inputs:
        return self.layer.inputs(use.x).regrouped(_samples_in(use))

    def _gradients(self, use: Use, total: int) -> Tensor:
        if use.gradient is None:
            raise RuntimeError(f"layer {self.layer.name!r} has no gradient yet")
        samples = _samples_in(use)
        # The loss is a mean over the samples; the estimators' format wants each sample's own.
        scale = total if samples == use.forward_pass.samples else math.sqrt(total)
        gradient = use.gradient.to(self.layer.weight.dtype) * scale
        return regroup(self.layer.output_gradients(gradient), samples)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        forward_pass = self._current_pass()
        if forward_pass is None or not isinstance(output, Tensor) or not output.requires_grad:
            return
        use = Use(forward_pass, args[0].detach(), None if self._takes_backward else get_gradient_edge(output))
        self.uses.append(use)
        if self._takes_backward:
            # The hook holds the use; if the use held the output too, neither would ever be freed.
            output.register_hook(partial(_note_gradient, use))  # type: ignore[no-untyped-call]


def sample_gradients(captures: Sequence[LayerCapture], loss: Tensor) -> None:
    """Set the gradients of all captured uses to those of `loss`, and keep its graph for the user's own backward."""
    uses = {use.output: use for capture in captures for use in capture.uses if use.output is not None}
    gradients = torch.autograd.grad(loss, list(uses), retain_graph=True, allow_unused=True)
    for use, gradient in zip(uses.values(), gradients, strict=True):
        use.gradient, use.output = gradient, None


def _note_gradient(use: Use, gradient: Tensor) -> None:
    use.gradient = gradient.detach()


def _samples_in(use: Use) -> int:
    """Return how many samples a layer's input holds.

    A model may fold other dimensions into the first one (tokens of a sequence): they share the weight. What fits no
    batch at all, such as position numbers that all samples have in common, counts as one sample, whose gradient is a
    mean over the batch; were the samples' gradients independent, its square would be smaller by their number.
    """
    samples = use.forward_pass.samples
    return samples if samples and len(use.x) % samples == 0 else 1
