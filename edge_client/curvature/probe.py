"""Curvature from synthetic inputs: devices with the same parameters and seed have the same, and none sends any.

The idea is that of DP-KFAC's noise probes (https://arxiv.org/abs/2605.13418): the factors of K-FAC are formed from
synthetic inputs instead of private ones. Targets are drawn from the model's own predictions, so that they are those of
the Fisher for such inputs.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import torch
from edgenewton.common.options import check_choice, check_number
from torch import Tensor, nn

from edge_client.curvature.aside import aside
from edge_client.curvature.capture import Captured, LayerCapture, sample_gradients
from edge_client.curvature.estimators import Statistics
from edge_client.curvature.forward_pass import ForwardPass
from edge_client.curvature.likelihood import Likelihood, sample_targets
from edge_client.curvature.linalg import is_finite
from edge_client.curvature.preconditioner import PreconditionedLayer


class ProbeError(ValueError):
    """A probe does not suit its model; the text says why."""


@dataclass(frozen=True)
class Probe:
    """A synthetic batch, whose curvature statistics stand for those of the devices' own batches.

    Devices compute equal bits if they are of one kind and use as many threads; else they differ by rounding, which may
    also draw another target where two classes are about to change places.

    Raises:
        OptionError: a number is impossible, or the likelihood unknown.

    """

    inputs: Callable[[torch.Generator, int], Tensor]
    """Returns so many synthetic inputs, `[samples, *input_shape]`, drawn from a generator of the CPU."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """The model's loss, given outputs and targets: a mean over the batch."""
    likelihood: Likelihood = "categorical"
    """The distribution whose negative logarithm the loss is."""
    samples: int = 32
    seed: int = 0
    """The same on all devices."""

    def __post_init__(self) -> None:
        check_number("samples", self.samples, at_least=1)
        check_number("seed", self.seed, at_least=0)
        check_choice("likelihood", self.likelihood, get_args(Likelihood))

    def statistics(self, model: nn.Module, layers: Sequence[PreconditionedLayer], number: int) -> dict[str, Statistics]:
        """Return each layer's statistics of the synthetic batch; zeros for a layer that it does not reach.

        The model, its gradients and all random numbers stay as they are: see `aside`. A `Batch` whose hooks are on the
        model is to be `paused`.

        Args:
            model: is called with the inputs, and returns one tensor.
            layers: of the model.
            number: of the probe, such as the step's: others are drawn for another.

        Raises:
            ProbeError: the inputs do not suit the model, or what they give is no curvature.

        """
        if not any(state.estimator.statistic_shapes for state in layers):
            return {state.name: {} for state in layers}
        with aside(model, self._seed_of(number, "forward")):
            captured = self._captured(model, layers, number)
            # Inside: a BatchNorm's input is normalised in the mode of its forward.
            return {state.name: _statistics(state, captured[state.name]) for state in layers}

    def _captured(
        self, model: nn.Module, layers: Sequence[PreconditionedLayer], number: int
    ) -> dict[str, list[Captured]]:
        generator = torch.Generator().manual_seed(self._seed_of(number, "samples"))
        x = self._draw(generator, layers[0].layer.weight)
        forward_pass = ForwardPass(lambda _: None, self.samples, is_whole=True)
        captures = {
            state.name: LayerCapture(state.layer, lambda: forward_pass, lambda: True, takes_backward=False)
            for state in layers
        }
        try:
            loss = self._loss_of(model, x, generator)
            if not (loss.requires_grad and any(capture.pending for capture in captures.values())):
                raise ProbeError("the probe's loss has no gradient: no preconditioned layer takes part in it")
            with _told("the probe's loss cannot be differentiated"):
                sample_gradients(list(captures.values()), loss)
        finally:
            for capture in captures.values():
                capture.remove()
        captured = {}
        for name, capture in captures.items():
            with _told(f"layer {name!r}: what the probe has called it with has no curvature"):
                samples_positions = next(s for s in layers if s.name == name).estimator.options.sample_positions
                captured[name] = capture.take(number if samples_positions else None)
        if not any(captured.values()):
            raise ProbeError("the probe's loss has no gradient: it reaches no preconditioned layer")
        return captured

    def _draw(self, generator: torch.Generator, like: Tensor) -> Tensor:
        with _told("the probe's inputs cannot be drawn"):
            x = self.inputs(generator, self.samples)
        if not isinstance(x, Tensor):
            raise ProbeError(f"the probe's inputs are of type {type(x).__name__}; they must be a tensor")
        if not x.dim() or len(x) != self.samples:
            shape = "x".join(map(str, x.shape)) or "a number alone"
            raise ProbeError(f"the probe's inputs are {shape}; the first dimension must be the {self.samples} samples")
        if not is_finite(x):
            raise ProbeError("the probe's inputs are not finite")
        return x.detach().to(like) if x.is_floating_point() else x.to(like.device)

    def _loss_of(self, model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        with _told(f"the model cannot take the probe's inputs, {'x'.join(map(str, x.shape))}"):
            outputs = model(x)
        if not isinstance(outputs, Tensor):
            raise ProbeError(
                f"the model returns {type(outputs).__name__}; targets can be drawn only if it returns a tensor"
            )
        if not is_finite(outputs.detach()):
            raise ProbeError("the model's outputs for the probe's inputs are not finite")
        with _told(f"no {self.likelihood} targets can be drawn for outputs {'x'.join(map(str, outputs.shape))}"):
            targets = sample_targets(outputs.detach(), self.likelihood, generator)
        with _told("the probe's loss cannot be computed"):
            loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ProbeError("the probe's loss is not one number; it must be the mean over the batch")
        if not is_finite(loss.detach()):
            raise ProbeError("the probe's loss is not finite")
        return loss

    def _seed_of(self, number: int, purpose: str) -> int:
        """Return a seed of 32 bits, all that some generators use: others for the next number, and for each purpose."""
        text = f"{self.seed} {number} {purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


@torch.no_grad()
def _statistics(state: PreconditionedLayer, captured: Sequence[Captured]) -> dict[str, Tensor]:
    if not captured:
        return state.no_statistics()
    (of_pass,) = captured
    with _told(f"layer {state.name!r}: what the probe has called it with has no curvature"):
        statistics = state.estimator.statistics(of_pass.a, of_pass.g)
    if not all(map(is_finite, statistics.values())):
        raise ProbeError(f"layer {state.name!r}: its curvature for the probe is not finite")
    return statistics


@contextmanager
def _told(problem: str) -> Iterator[None]:
    """Say what was tried when the user's code fails, whatever it raises."""
    try:
        yield
    except Exception as error:
        raise ProbeError(f"{problem}: {error}") from error
