"""What the batch that is on tells of a model: how many samples it has, and each layer's curvature statistics."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edge_client.curvature.capture import Captured, ForwardPass, LayerCapture, sample_gradients
from edge_client.curvature.hooks import Hook
from edge_client.curvature.preconditioner import PreconditionedLayer


class Batch:
    """Puts hooks on a model that note what the user's own forward and backward do between two calls of `forget`.

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
        """The model's buffers as they were before the batch: a forward may change them."""
        self._model = model
        self._before = before
        self._is_captured = is_captured
        self._samples_fisher = samples_fisher
        self._passes: list[ForwardPass] = []
        self._captures = {
            state.name: LayerCapture(state.layer, self._captured_pass, takes_backward=not samples_fisher)
            for state in layers
        }
        self._handle = model.register_forward_pre_hook(Hook(self._before_forward), with_kwargs=True)

    @property
    def samples(self) -> int:
        """Samples in the batch so far."""
        return sum(forward_pass.samples for forward_pass in self._passes)

    def sample_fisher(self, loss: Tensor) -> None:
        """Take the statistics' gradients from `loss`, and keep its graph."""
        if self._is_captured():
            sample_gradients(list(self._captures.values()), loss)

    @torch.no_grad()
    def take_statistics(self, state: PreconditionedLayer, step: int) -> dict[str, Tensor]:
        """Return a layer's statistics, and forget what they were made of; zeros for a layer that was not used.

        Raises:
            RuntimeError: the loss of the sampled Fisher is missing.

        """
        capture = self._captures[state.name]
        if capture.uses and capture.uses[-1].gradient is None and self._samples_fisher:
            raise RuntimeError(
                f"step {step} needs the sampled Fisher: between forward and backward call "
                "optimizer.sample_fisher(loss_fn(outputs, sample_targets(outputs)))"
            )
        captured = capture.take()
        if not captured:
            # The other devices may have used it.
            shapes = state.estimator.statistic_shapes
            return {name: state.layer.weight.new_zeros(shape) for name, shape in shapes.items()}
        return _mean([state.estimator.statistics(c.a, c.g) for c in captured], captured)

    def forget(self) -> None:
        """Let the next batch begin."""
        self._passes = []
        self.buffers = {}

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._handle.remove()
        for capture in self._captures.values():
            capture.remove()

    def _captured_pass(self) -> ForwardPass | None:
        is_wanted = torch.is_grad_enabled() and bool(self._passes) and self._is_captured()
        return self._passes[-1] if is_wanted else None

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if not torch.is_grad_enabled():
            return
        inputs = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), None)
        if inputs is None:
            return
        if not self._passes:
            self._before()
            self.buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        self._passes.append(ForwardPass(len(self._passes), len(inputs)))


def _mean(statistics: Sequence[dict[str, Tensor]], captured: Sequence[Captured]) -> dict[str, Tensor]:
    """Return the mean of several forward passes' statistics, weighted by their samples."""
    if len(statistics) == 1:
        return statistics[0]
    total = sum(c.samples for c in captured)
    weights = [c.samples / total for c in captured]
    return {name: sum(w * s[name] for w, s in zip(weights, statistics, strict=True)) for name in statistics[0]}  # type: ignore[misc]
