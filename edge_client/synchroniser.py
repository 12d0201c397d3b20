"""Synchronises a model's gradients, curvature statistics and parameters with other devices, while backward runs.

Autograd hooks send each layer's tensors to the exchange as soon as backward has produced them; `collect` waits for
the synchronised values.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from edgenewton.v1.fingerprint import TensorSpec
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from edge_client.curvature import Estimator
from edge_client.curvature.capture import LayerCapture
from edge_client.curvature.layers import Layer
from edge_client.exchange import Evaluation, Exchange, StepResult, TensorKey


class PreconditionedLayer:
    """A layer, its curvature estimator, and the statistics of the batch that is on."""

    def __init__(self, layer: Layer, estimator: Estimator) -> None:
        self.layer = layer
        self.estimator = estimator
        self.statistics: dict[str, Tensor] = {}

    @property
    def name(self) -> str:
        """Name of the module in the model."""
        return self.layer.name

    def key(self, statistic: str) -> TensorKey:
        """Return the key under which a statistic is exchanged."""
        return ("curvature", f"{self.name}:{statistic}")


class Synchroniser:
    """Puts hooks on a model that send what belongs to a step, and collects what the step gave.

    Args:
        model: the model that is trained.
        layers: its preconditioned layers.
        exchange: how devices synchronise.
        shares_curvature: whether the layers' statistics are exchanged too.
        averages_parameters: whether `collect(average=True)` and `average` average the parameters; buffers they
            average in any case.
        factor_every: steps between two captures of the statistics.

    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[PreconditionedLayer],
        exchange: Exchange,
        *,
        shares_curvature: bool,
        averages_parameters: bool,
        factor_every: int,
    ) -> None:
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._model = model
        self._layers = layers
        self._exchange = exchange
        self._shares_curvature = shares_curvature
        self._averages_parameters = averages_parameters
        self._factor_every = factor_every
        self._is_sending = True
        self._samples = 0
        self._has_begun = False
        self._contributed: set[TensorKey] = set()
        self._report: tuple[float, Evaluation | None] = (math.nan, None)
        self._captures = {state.layer.weight: LayerCapture(state.layer, self._wants_statistics) for state in layers}
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

    def start(self, options: Mapping[str, str], training_samples: int) -> None:
        """Take this device's place in the session; its weights become those of the session.

        Raises:
            ExchangeError: the coordinator is down or refuses this device.

        """
        self._exchange.start(self._fingerprint(), options, self._dump_weights, self._load_weights, training_samples)

    def report(self, loss: float, evaluation: Evaluation | None) -> None:
        """Note how this batch went; it is sent with `collect`."""
        self._report = (loss, evaluation)

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
        specs += [_spec(name, tensor.shape, tensor, "parameter") for name, tensor in self.averaged().items()]
        return specs

    def _dump_weights(self) -> bytes:
        return dump_tensors({name: tensor.contiguous() for name, tensor in self._model.state_dict().items()})

    def _load_weights(self, data: bytes) -> None:
        self._model.load_state_dict(load_tensors(data))

    # ------------------------------------------------------------------ hooks

    def _wants_statistics(self) -> bool:
        return torch.is_grad_enabled() and self._is_sending and self.steps % self._factor_every == 0

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if not torch.is_grad_enabled():
            return
        batch = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), None)
        if batch is not None:
            self._samples += len(batch)

    def _after_gradient(self, parameter: Tensor) -> None:
        if not self._is_sending:
            return
        if self._gradient_key(parameter) in self._contributed:
            raise RuntimeError(
                f"the gradient of {self._gradient_key(parameter)[1]!r} was already sent in this step; wrap all but "
                "the last backward of a step in `with optimizer.no_sync():`"
            )
        self._contribute_statistics(parameter)
        self._contribute_gradient(parameter)

    # ------------------------------------------------------------------ contributions

    def _gradient_key(self, parameter: Tensor) -> TensorKey:
        return ("gradient", self.names[parameter])  # type: ignore[index]

    def _contribute(self, key: TensorKey, value: Tensor) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._exchange.begin(max(self._samples, 1))
        self._contributed.add(key)
        self._exchange.contribute(key, value)

    @torch.no_grad()
    def _contribute_statistics(self, weight: Tensor) -> None:
        state = self._state_of.get(weight)  # type: ignore[call-overload]
        captured = self._captures[state.layer.weight].take() if state is not None else None
        if state is None or captured is None:
            return
        state.statistics = state.estimator.statistics(*captured)
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
        self._samples = 0
        self._has_begun = False
        self._contributed = set()
        self._report = (math.nan, None)


def _spec(name: str, shape: Sequence[int], like: Tensor, kind: str) -> TensorSpec:
    return TensorSpec(name, tuple(shape), str(like.dtype).removeprefix("torch."), kind)
