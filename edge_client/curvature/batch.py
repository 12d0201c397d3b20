"""What the batch that is on tells of a model: how many samples it has, and each layer's curvature statistics."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edge_client.curvature.backward import NONE, current_backward
from edge_client.curvature.capture import LayerCapture, sample_gradients
from edge_client.curvature.forward_pass import ForwardPass, leading_dimension, tensors_in
from edge_client.curvature.hooks import Hook
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.curvature.schedule import is_on_log_schedule

_UNEXPLAINED = 0.05
"""Autocast computes a gradient in bf16, whose rounding is not to be taken for a part that is not explained."""


class _Part(NamedTuple):
    """Statistics of one pass, whose loss was taken to be the mean over `total` samples."""

    statistics: dict[str, Tensor]
    samples: int
    total: int
    forward_pass: ForwardPass
    backward: int


class Batch:
    """Puts hooks on a model that note what the user's own forward and backward do between two calls of `forget`.

    A sample belongs to the batch if its gradient reached a layer: a forward that no backward follows (a metric, a
    teacher, validation) leaves no trace.

    Args:
        model: the model that is trained.
        layers: its preconditioned layers.
        before: called before the first forward of a batch.
        is_captured: tells whether the statistics of the batch that is on are wanted.
        samples_fisher: whether the statistics' gradients are those of `sample_fisher`'s loss, not of the user's own.

    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[PreconditionedLayer],
        *,
        before: Callable[[], None],
        is_captured: Callable[[], bool],
        samples_fisher: bool,
    ) -> None:
        self.buffers: dict[str, Tensor] = {}
        """The model's buffers that a forward may change, as they were before the batch."""
        self._model = model
        # Walking over all modules takes longer than looking into those that are known.
        self._with_buffers = [(name, module) for name, module in model.named_modules() if module._buffers]
        self._before = before
        self._is_captured = is_captured
        self._samples_fisher = samples_fisher
        self._has_begun = False
        self._is_running = False
        """Whether the model's own forward is on."""
        self._is_paused = False
        self._pass = ForwardPass(self._note_gradient)
        """The last forward; it may be on."""
        self._reached: dict[ForwardPass, int] = {}
        """Passes that gradients have reached, and in which backward."""
        self._backwards: set[int] = set()
        """Those that have reached a parameter's `grad`."""
        self._captures: dict[str, LayerCapture] = {}
        self._digested: dict[str, list[_Part]] = {}
        self._checks: Counter[str] = Counter()
        """Batches in which each layer could be checked: what was explained for long is checked ever more seldom."""
        # Before the model's own hooks: the model may be a layer itself, and its forward ends with them.
        self.add_layers(layers)
        self._handles = [
            model.register_forward_pre_hook(Hook(self._before_forward), with_kwargs=True),
            model.register_forward_hook(Hook(self._after_forward), always_call=True),
            *(
                module.register_forward_pre_hook(Hook(self._begin))
                for _, module in self._with_buffers
                if module is not model
                and (_may_write(module) or any(p.requires_grad for p in module.parameters(False)))
            ),
            *(
                module.register_forward_hook(Hook(self._count_use), with_kwargs=True)
                for module in _uncaptured(model, layers)
            ),
        ]

    def add_layers(self, layers: Sequence[PreconditionedLayer]) -> None:
        """Capture more layers."""
        for state in layers:
            self._captures[state.name] = LayerCapture(
                state.layer, self._current_pass, self._is_captured, takes_backward=not self._samples_fisher
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing of what runs inside, such as the forward of a probe: it is no part of the user's batch."""
        was_paused, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = was_paused

    @property
    def samples(self) -> int | None:
        """Samples whose gradients have come so far; None where that cannot be seen."""
        reached = [forward_pass for forward_pass, backward in self._reached.items() if backward in self._backwards]
        return sum(forward_pass.samples for forward_pass in reached) if reached else None

    @property
    def has_gradients(self) -> bool:
        """Whether a backward has come."""
        return bool(self._backwards)

    def confirm(self) -> None:
        """Note that the backward that is on has reached a parameter's `grad`, as `torch.autograd.grad` does not."""
        self._backwards.add(current_backward())

    def begin_anew(self) -> None:
        """Forget all backwards but the one that is on: the gradients of the others were thrown away."""
        now = current_backward()
        self._backwards &= {now}
        self._digested = {
            name: [part for part in parts if part.backward == now] for name, parts in self._digested.items()
        }

    def sample_fisher(self, loss: Tensor) -> None:
        """Take the statistics' gradients from `loss`, and keep its graph."""
        if self._is_captured():
            sample_gradients(list(self._captures.values()), loss)

    @torch.no_grad()
    def digest(self, state: PreconditionedLayer, step: int, *, is_fresh: bool = False) -> None:
        """Make statistics of what a layer has captured, which is then forgotten: it may take much memory.

        Args:
            state: the layer.
            step: number of the step, for errors, and to draw positions of convolutions by.
            is_fresh: whether gradients were set to nothing before the batch.

        Raises:
            RuntimeError: the loss of the sampled Fisher is missing.

        """
        capture = self._captures[state.name]
        if capture.is_missing_sample:
            raise RuntimeError(
                f"step {step} needs the sampled Fisher: between forward and backward call "
                "optimizer.sample_fisher(loss_fn(outputs, sample_targets(outputs)))"
            )
        is_first = is_fresh and not self._digested.get(state.name)
        parts = self._digested.setdefault(state.name, [])
        backward = current_backward()
        try:
            if not self._samples_fisher:
                capture.keep_only(backward)
            if is_first and not self._samples_fisher:
                if is_on_log_schedule(self._checks[state.name]):
                    self._check_explained(state, capture)
                self._checks[state.name] += 1
            captured = capture.take(step if state.estimator.options.sample_positions else None)
            total = sum(c.samples for c in captured)
            parts += [
                _Part(state.estimator.statistics(c.a, c.g), c.samples, total, c.forward_pass, backward)
                for c in captured
            ]
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            # What a layer is called with is the user's: their backward does not fail for want of our curvature.
            capture.forget()
            _give_up(state, f"what it was called with has no curvature ({error})")

    @torch.no_grad()
    def take_statistics(self, state: PreconditionedLayer, step: int, loss_scale: float = 1.0) -> dict[str, Tensor]:
        """Return a layer's statistics over all passes of the batch; zeros for a layer that was not used.

        Args:
            state: the layer.
            step: number of the step, for errors.
            loss_scale: what the loss was multiplied with, as `torch.amp.GradScaler` does.

        Raises:
            RuntimeError: the loss of the sampled Fisher is missing.

        """
        if self._samples_fisher:
            self.digest(state, step)
        parts = self._digested.pop(state.name, [])
        if not parts:
            return state.no_statistics()  # the other devices may have used it
        return _mean(parts, state.estimator.gradient_degrees, loss_scale)

    def forget_layer(self, state: PreconditionedLayer) -> None:
        """Forget what a layer has captured."""
        self._captures[state.name].forget()
        self._digested.pop(state.name, None)

    def forget(self) -> None:
        """Let the next batch begin; a forward that no backward has reached yet may be of that one."""
        self._has_begun = False
        self._is_running = False
        self._reached = {}
        self._backwards = set()
        self._digested = {}
        self.buffers = {}
        for capture in self._captures.values():
            capture.forget()

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        for capture in self._captures.values():
            capture.remove()

    def _check_explained(self, state: PreconditionedLayer, capture: LayerCapture) -> None:
        """Note if a layer's gradient has a part that no call of the layer explains."""
        gradient = state.layer.weight.grad
        if gradient is None or state.is_doubted or not state.estimator.statistic_shapes:
            return
        if not capture.explains(gradient, _UNEXPLAINED):
            _give_up(
                state, "its gradient has a part that no call of the layer explains (is its weight used by itself?)"
            )

    def _current_pass(self) -> ForwardPass | None:
        """Return the forward pass that is on; layers that are called on their own are one until a backward came.

        None while the batch is paused.
        """
        if self._is_paused:
            return None
        if not self._has_begun:
            self._begin()
        # Activation checkpointing computes a part again, in the backward.
        if not (self._is_running or self._pass.goes_on or current_backward() != NONE):
            self._pass = ForwardPass(self._note_gradient)
        return self._pass

    def _note_gradient(self, forward_pass: ForwardPass) -> None:
        self._reached[forward_pass] = current_backward()

    def _begin(self, *_: object) -> None:
        if self._has_begun or self._is_paused or not torch.is_grad_enabled():
            return
        self._before()
        self._has_begun = True
        self.buffers = {
            f"{owner}.{name}" if owner else name: buffer.clone()
            for owner, module in self._with_buffers
            if _may_write(module)
            for name, buffer in module._buffers.items()
            if buffer is not None
        }

    def _count_use(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:  # noqa: ARG002
        """Count the rows of a module that has parameters and no curvature."""
        rows = leading_dimension(args, kwargs)
        tensors = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        if rows is None or not tensors or not torch.is_grad_enabled():
            return
        forward_pass = self._current_pass()
        if forward_pass is None:
            return
        forward_pass.note_use(rows)
        for tensor in tensors:
            forward_pass.watch(tensor, rows)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if torch.is_grad_enabled() and not self._is_paused:
            self._begin()
            self._is_running = True
            self._pass = ForwardPass(self._note_gradient, leading_dimension(args, kwargs), is_whole=True)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:  # noqa: ARG002
        if self._is_paused:
            return
        self._is_running = False
        if not torch.is_grad_enabled():
            return
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                self._pass.watch(tensor)


def _may_write(module: nn.Module) -> bool:
    """Whether a module's forward may change its buffers; a norm that does not train leaves its moments alone."""
    return module.training or not isinstance(module, _NormBase)


def _give_up(state: PreconditionedLayer, reason: str) -> None:
    """Ask that a layer does without curvature from now on, and say so once."""
    if not state.is_doubted:
        state.is_doubted = True
        told = f"layer {state.name}: {reason}; its parameters take plain gradient steps with momentum"
        warnings.warn(told, stacklevel=3)


def _uncaptured(model: nn.Module, layers: Sequence[PreconditionedLayer]) -> list[nn.Module]:
    """Return the modules below a model that have trainable parameters themselves, but are no preconditioned layers."""
    captured = {state.layer.module for state in layers}
    return [
        module
        for module in model.modules()
        if module is not model and module not in captured and any(p.requires_grad for p in module.parameters(False))
    ]


def _mean(parts: Sequence[_Part], degrees: Mapping[str, int], loss_scale: float) -> dict[str, Tensor]:
    """Return the mean of several passes' statistics, weighted by their samples, for the loss over all of them."""
    times = Counter(part.forward_pass for part in parts)
    total = sum({part.forward_pass: part.samples for part in parts}.values())
    mean: dict[str, Tensor] = {}
    for name in parts[0].statistics:
        for part in parts:
            # What a pass took for its whole loss is a part of the mean over all passes. Of several losses on one pass
            # the gradients' moments add up, as those of independent gradients do; the inputs are the same.
            factor = part.samples / total * (total / part.total / loss_scale) ** degrees[name]
            factor /= 1 if degrees[name] else times[part.forward_pass]
            scaled = part.statistics[name] * factor if factor != 1 else part.statistics[name]
            mean[name] = mean[name] + scaled if name in mean else scaled
    return mean
