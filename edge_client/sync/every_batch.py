"""Synchronises a model's gradients, curvature statistics and parameters with other devices, while backward runs.

Autograd hooks send each layer's tensors to the exchange as soon as backward has produced them; `collect` waits for
the synchronised values.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor, nn

from edge_client.curvature.capture import Captured, ForwardPass, LayerCapture, sample_gradients
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.exchange import Exchange, Replica, StepResult, TensorKey
from edge_client.optim.trust_region import is_due


class Synchroniser:
    """Puts hooks on a model that send what belongs to a step, and collects what the step gave.

    Args:
        model: the model that is trained.
        layers: its preconditioned layers.
        exchange: how devices synchronise.
        shares_curvature: whether the layers' statistics are exchanged too.
        scalars: names of the numbers that `add_scalar` may contribute.
        averages_parameters: whether `collect(average=True)` and `average` average the parameters; buffers they
            average in any case.
        factor_every: steps between two captures of the statistics.
        warmup_steps: first steps from `began_at` on, which all capture them.
        samples_fisher: whether the captured gradients are those of `sample_fisher`'s loss, not of the user's own.

    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[PreconditionedLayer],
        exchange: Exchange,
        *,
        shares_curvature: bool,
        averages_parameters: bool,
        scalars: Sequence[str],
        factor_every: int,
        warmup_steps: int,
        samples_fisher: bool,
    ) -> None:
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._model = model
        self._layers = layers
        self._exchange = exchange
        self._shares_curvature = shares_curvature
        self._averages_parameters = averages_parameters
        self._scalars = tuple(scalars)
        self._factor_every = factor_every
        self._warmup_steps = warmup_steps
        self._samples_fisher = samples_fisher
        self.began_at: int | None = None
        """The first step of the curvature, from which its warm-up counts."""
        self._is_sending = True
        self._passes: list[ForwardPass] = []
        self._buffers: dict[str, Tensor] = {}
        self._extras: dict[TensorKey, Tensor] = {}
        self._has_begun = False
        self._contributed: set[TensorKey] = set()
        self._report: tuple[float, Evaluation | None] = (math.nan, None)
        self._captures = {
            state.layer.weight: LayerCapture(state.layer, self._captured_pass, takes_backward=not samples_fisher)
            for state in layers
        }
        self._state_of = {state.layer.weight: state for state in layers}
        self._handles = [model.register_forward_pre_hook(self._before_forward, with_kwargs=True)]
        for parameter in self.names:
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._after_gradient))  # type: ignore[no-untyped-call]

    @property
    def steps(self) -> int:
        """Number of the step that is on, or comes next."""
        return self._exchange.step

    def resume_at(self, step: int) -> None:
        """Go on at `step`, unless a coordinator has set the step."""
        self._exchange.resume_at(step)

    def start(self, options: Mapping[str, str], replica: Replica, training_samples: int) -> None:
        """Take this device's place in the session; its state becomes that of the session.

        Raises:
            ExchangeError: the coordinator is down or refuses this device.

        """
        self._exchange.start(self._fingerprint(), options, replica, training_samples)
        if self.began_at is None:
            self.began_at = self.steps

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and in each of the first ones, happens in a step."""
        return is_due(step - (self.began_at or 0), every, self._warmup_steps)

    @property
    def reported_loss(self) -> float:
        """Loss of the batch that is on, or NaN if it was not reported."""
        return self._report[0]

    def report(self, loss: float, evaluation: Evaluation | None) -> None:
        """Note how this batch went; it is sent with `collect`."""
        self._report = (loss, evaluation)

    def sample_fisher(self, loss: Tensor) -> None:
        """Take the curvature's gradients from `loss`, and keep its graph."""
        if self.is_factor_step:
            sample_gradients(list(self._captures.values()), loss)

    def add_scalar(self, name: str, value: float, *, replaces: bool = True) -> None:
        """Contribute a number to the step that is on; its mean over the devices comes with the step's result."""
        if replaces or ("curvature", name) not in self._extras:
            self._extras["curvature", name] = torch.tensor([value])

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Send nothing inside; gradients accumulate."""
        self._is_sending = False
        try:
            yield
        finally:
            self._is_sending = True

    def collect(self, average: bool = False) -> StepResult:
        """Complete this device's contribution and return the synchronised tensors.

        Args:
            average: also exchange the tensors that `averaged` names.

        Raises:
            ExchangeError: the step did not commit.

        """
        for parameter in self.names:
            self._contribute_gradient(parameter)
        for state in self._layers:
            if self.is_factor_step and state.statistics is None:
                self._contribute_statistics(state)
        for key, value in self._extras.items():
            self._contribute(key, value)
        if average:
            self._contribute_averaged()
        result = self._exchange.collect(*self._report)
        self._forget_batch()
        return result

    def average(self) -> StepResult | None:
        """Exchange the tensors that `averaged` names in a step of their own, if there are any."""
        if not self.averaged():
            return None
        self._contribute_averaged()
        result = self._exchange.collect(*self._report)
        self._forget_batch()
        return result

    def averaged(self) -> dict[str, Tensor]:
        """Return, by name, the tensors of the model that are averaged: buffers, and parameters where set so."""
        tensors: dict[str, Tensor] = {n: b for n, b in self._model.named_buffers() if b.is_floating_point()}
        if self._averages_parameters:
            tensors |= {name: parameter for parameter, name in self.names.items()}
        return tensors

    def buffers_before_batch(self) -> dict[str, Tensor]:
        """Return the model's buffers as they were before the batch that is on: a forward may change them."""
        return self._buffers

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        for capture in self._captures.values():
            capture.remove()

    # ------------------------------------------------------------------ session

    def _fingerprint(self) -> list[TensorSpec]:
        specs = [_spec(name, parameter.shape, parameter, "gradient") for parameter, name in self.names.items()]
        if self._shares_curvature:
            for state in self._layers:
                for statistic, shape in state.estimator.statistic_shapes.items():
                    kind, name = state.key(statistic)
                    specs.append(_spec(name, shape, state.layer.weight, kind))
        specs += [TensorSpec(name, (1,), kind="curvature") for name in self._scalars]
        specs += [_spec(name, tensor.shape, tensor, "parameter") for name, tensor in self.averaged().items()]
        return specs

    # ------------------------------------------------------------------ hooks

    @property
    def is_factor_step(self) -> bool:
        """Whether the step that is on updates the curvature statistics."""
        return self.is_due(self.steps, self._factor_every)

    def _captured_pass(self) -> ForwardPass | None:
        is_wanted = torch.is_grad_enabled() and self.is_factor_step and bool(self._passes)
        return self._passes[-1] if is_wanted else None

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if not torch.is_grad_enabled():
            return
        batch = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), None)
        if batch is not None:
            if not self._passes:
                self._buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
            self._passes.append(ForwardPass(len(self._passes), len(batch)))

    def _after_gradient(self, parameter: Tensor) -> None:
        if not self._is_sending:
            return
        if self._gradient_key(parameter) in self._contributed:
            raise RuntimeError(
                f"the gradient of {self._gradient_key(parameter)[1]!r} was already sent in this step; wrap all but "
                "the last backward of a step in `with optimizer.no_sync():`"
            )
        state = self._state_of.get(parameter)  # type: ignore[call-overload]
        if state is not None and self.is_factor_step:
            self._contribute_statistics(state)
        self._contribute_gradient(parameter)

    # ------------------------------------------------------------------ contributions

    def _gradient_key(self, parameter: Tensor) -> TensorKey:
        return ("gradient", self.names[parameter])  # type: ignore[index]

    def _contribute(self, key: TensorKey, value: Tensor) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._exchange.begin(max(sum(forward_pass.samples for forward_pass in self._passes), 1))
        self._contributed.add(key)
        self._exchange.contribute(key, value)

    @torch.no_grad()
    def _contribute_statistics(self, state: PreconditionedLayer) -> None:
        capture = self._captures[state.layer.weight]
        if capture.uses and capture.uses[-1].gradient is None and self._samples_fisher:
            raise RuntimeError(
                f"step {self.steps} needs the sampled Fisher: between forward and backward call "
                "optimizer.sample_fisher(loss_fn(outputs, sample_targets(outputs)))"
            )
        captured = capture.take()
        if state.estimator.statistic_shapes and not captured:
            # A layer that this batch did not use; the other devices may have used it.
            state.statistics = {
                name: state.layer.weight.new_zeros(shape) for name, shape in state.estimator.statistic_shapes.items()
            }
        else:
            state.statistics = _mean([state.estimator.statistics(c.a, c.g) for c in captured], captured)
        if self._shares_curvature:
            for statistic, value in state.statistics.items():
                self._contribute(state.key(statistic), value)

    def _contribute_gradient(self, parameter: Tensor) -> None:
        key = self._gradient_key(parameter)
        if key not in self._contributed:
            # A parameter that this batch did not use has no gradient; the other devices may have one.
            self._contribute(key, parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))

    def _contribute_averaged(self) -> None:
        for name, tensor in self.averaged().items():
            self._contribute(("parameter", name), tensor)

    def _forget_batch(self) -> None:
        self._passes = []
        self._buffers = {}
        self._has_begun = False
        self._contributed = set()
        self._extras = {}
        self._report = (math.nan, None)


def _mean(statistics: Sequence[dict[str, Tensor]], captured: Sequence[Captured]) -> dict[str, Tensor]:
    """Return the mean of several forward passes' statistics, weighted by their samples."""
    if len(statistics) <= 1:
        return dict(statistics[0]) if statistics else {}
    total = sum(c.samples for c in captured)
    weights = [c.samples / total for c in captured]
    return {name: sum(w * s[name] for w, s in zip(weights, statistics, strict=True)) for name in statistics[0]}  # type: ignore[misc]


def _spec(name: str, shape: Sequence[int], like: Tensor, kind: str) -> TensorSpec:
    return TensorSpec(name, tuple(shape), str(like.dtype).removeprefix("torch."), kind)
