"""Captures each layer's inputs and pre-activation gradients while the user's own forward and backward run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from edge_client.curvature.backward import NONE, current_backward
from edge_client.curvature.forward_pass import ForwardPass
from edge_client.curvature.hooks import Hook
from edge_client.curvature.inputs import Inputs, join_uses, products_of, regroup
from edge_client.curvature.layers import Layer

_DIRECTIONS = 8
"""Along which gradients are compared."""


@dataclass
class Use:
    """One use of a layer in a forward pass."""

    forward_pass: ForwardPass
    x: Tensor
    """The layer's input; its first dimension counts rows, also where the layer was called without a batch."""
    is_unbatched: bool
    output: GradientEdge | None = None
    """Where `sample_gradients` takes the gradient; None where a hook does."""
    gradient: Tensor | None = None
    backward: int = NONE
    """In which it came."""
    inputs: Inputs | None = None
    """What the layer's input is in the common format, once it is known; patches take long to form."""
    g: Tensor | None = None
    """What the gradient is in the common format, once it is known."""


@dataclass(frozen=True)
class Captured:
    """What a layer saw in one forward pass, in the common format."""

    a: Inputs
    g: Tensor
    """Gradients for each sample's own loss, if the loss is a mean over the samples, `[blocks, batch, shared, out]`."""
    samples: int
    forward_pass: ForwardPass


class LayerCapture:
    """Collects the uses of one layer that gradients reach between two calls of `take`.

    Args:
        layer: the layer.
        current_pass: returns the forward pass that is on; None for one that is to leave no trace.
        is_captured: tells whether inputs and gradients are wanted; the samples are counted in any case.
        takes_backward: whether the gradients are those of the user's own backward; else they are set by
            `sample_gradients`.

    """

    def __init__(
        self,
        layer: Layer,
        current_pass: Callable[[], ForwardPass | None],
        is_captured: Callable[[], bool],
        *,
        takes_backward: bool,
    ) -> None:
        self.layer = layer
        self.pending: list[Use] = []
        """Uses whose gradient `sample_gradients` is to set."""
        self._uses: list[Use] = []
        self._current_pass = current_pass
        self._is_captured = is_captured
        self._takes_backward = takes_backward
        self._handle = layer.module.register_forward_hook(Hook(self._after_forward), with_kwargs=True)

    def take(self, seed: int | None = None) -> list[Captured]:
        """Return what was captured, an entry for each forward pass, and forget it.

        A module that was used several times in a forward pass counts as sharing its weight between the uses. With
        several passes (gradient accumulation) the loss of the step is taken to be the mean over all their samples.

        Args:
            seed: draws the uses that the inputs' second moment is formed of, where some are enough; None for all.

        """
        uses, self._uses, self.pending = self._uses, [], []
        passes = list(dict.fromkeys(use.forward_pass for use in uses))
        total = sum(forward_pass.samples for forward_pass in passes)
        captured = []
        for forward_pass in passes:
            together = [use for use in uses if use.forward_pass is forward_pass]
            a = join_uses([self._inputs(use) for use in together])
            a = a if seed is None else a.sampled(seed)
            gradients = [self._gradients(use, total) for use in together]
            g = gradients[0] if len(gradients) == 1 else torch.cat(gradients, dim=2)
            captured.append(Captured(a, g, forward_pass.samples, forward_pass))
        for use in uses:
            use.gradient = use.inputs = use.g = None  # a graph that is kept may bring another
        return captured

    def keep_only(self, backward: int) -> None:
        """Forget what another backward has brought: it did not reach the layer's weight."""
        self._uses = [use for use in self._uses if use.backward == backward]

    def explains(self, gradient: Tensor, tolerance: float) -> bool:
        """Whether what was captured gives the gradient of the layer's weight, up to a part of its norm and rounding.

        Both are multiplied with a few fixed directions, at a fraction of what the gradient takes: their difference
        keeps its expected norm (Freivalds 1977; Johnson & Lindenstrauss 1984).
        """
        weights = self.layer.weight_matrix(gradient)
        directions = self.layer.reaching(_directions(weights.shape[-1], weights.dtype, weights.device))
        difference = weights @ directions
        for use in self._uses:
            difference -= products_of(self._output_gradient(use), self._common_inputs(use).along(directions))
        beyond = float(difference.norm()) - tolerance * float(weights.norm())
        # A gradient may be nothing but rounding, as that of a scale is before another normalisation. What is not finite
        # is found elsewhere.
        return not (beyond > 0 and beyond > sum(map(self._rounding, self._uses)))

    @property
    def is_missing_sample(self) -> bool:
        """Whether there is only what `sample_gradients` has not been called for."""
        return not self._uses and any(use.output is not None for use in self.pending)

    def forget(self) -> None:
        """Forget what was captured."""
        self._uses, self.pending = [], []

    def sampled(self, use: Use, gradient: Tensor | None) -> None:
        """Take a gradient that was not the user's own backward's."""
        use.output = None
        if gradient is not None:
            use.gradient, use.g = gradient, None
            self._uses.append(use)

    def remove(self) -> None:
        """Stop capturing."""
        self._handle.remove()

    def _common_inputs(self, use: Use) -> Inputs:
        if use.inputs is None:
            use.inputs = self.layer.inputs(use.x)
        return use.inputs

    def _rounding(self, use: Use) -> float:
        """Return how far the gradient of a use may be rounded."""
        g = self._output_gradient(use)
        computed_in = g.dtype if use.gradient is None else use.gradient.dtype
        return torch.finfo(computed_in).eps * self._common_inputs(use).norm() * float(g.norm())

    def _inputs(self, use: Use) -> Inputs:
        return self._common_inputs(use).regrouped(_samples_in(use))

    def _gradients(self, use: Use, total: int) -> Tensor:
        samples = _samples_in(use)
        # The loss is a mean over the samples; the estimators' format wants each sample's own.
        scale = total if samples == use.forward_pass.samples else math.sqrt(total)
        return regroup(self._output_gradient(use) * scale, samples)

    def _output_gradient(self, use: Use) -> Tensor:
        if use.g is not None:
            return use.g
        if use.gradient is None:
            raise RuntimeError(f"layer {self.layer.name!r} has no gradient yet")
        gradient = use.gradient.detach().to(self.layer.weight.dtype)
        use.g = self.layer.output_gradients(gradient.unsqueeze(0) if use.is_unbatched else gradient)
        return use.g

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ARG002
        if not torch.is_grad_enabled() or not isinstance(output, Tensor) or not output.requires_grad:
            return
        x = args[0] if args else None
        if not isinstance(x, Tensor):
            x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if x is None:
                return
        is_unbatched = x.dim() == self.layer.sample_dims
        rows = 1 if is_unbatched else x.shape[0]
        forward_pass = self._current_pass()
        if forward_pass is None:
            return
        forward_pass.note_use(rows)
        if not rows or not self._is_captured():
            forward_pass.watch(output, rows)
            return
        use = Use(forward_pass, x.detach().unsqueeze(0) if is_unbatched else x.detach(), is_unbatched)
        if self._takes_backward:
            # The hook holds the use; if the use held the output too, neither would ever be freed.
            output.register_hook(partial(self._note_use, use, rows))  # type: ignore[no-untyped-call]
        else:
            use.output = get_gradient_edge(output)
            self.pending.append(use)
            forward_pass.watch(output, rows)

    def _note_use(self, use: Use, rows: int, gradient: Tensor) -> None:
        use.forward_pass.note_gradient(rows)
        if use.gradient is None:
            self._uses.append(use)
        use.gradient, use.g, use.backward = gradient, None, current_backward()


def sample_gradients(captures: Sequence[LayerCapture], loss: Tensor) -> None:
    """Set the gradients of all captured uses to those of `loss`, and keep its graph for the user's own backward."""
    uses = [(capture, use) for capture in captures for use in capture.pending if use.output is not None]
    edges = [use.output for _, use in uses if use.output is not None]
    gradients = torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True)
    for (capture, use), gradient in zip(uses, gradients, strict=True):
        capture.sampled(use, gradient)


def _samples_in(use: Use) -> int:
    """Return how many samples a layer's input holds.

    A model may fold other dimensions into the first one (tokens of a sequence): they share the weight. What fits no
    batch at all, such as position numbers that all samples have in common, counts as one sample, whose gradient is a
    mean over the batch; were the samples' gradients independent, its square would be smaller by their number.
    """
    samples = use.forward_pass.samples
    return samples if samples and len(use.x) % samples == 0 else 1


@lru_cache(maxsize=64)
def _directions(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return directions `[size, n]`: random signs, the same every time, or the unit matrix if that is no larger."""
    if size <= _DIRECTIONS:
        return torch.eye(size, dtype=dtype, device=device)
    signs = torch.randint(2, (size, _DIRECTIONS), generator=torch.Generator().manual_seed(size)) * 2 - 1
    return (signs / math.sqrt(_DIRECTIONS)).to(device, dtype)
