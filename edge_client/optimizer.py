"""NewtonOptimizer: a torch optimizer whose step is the inverse Hessian times the gradient of all devices together."""

import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edge_client.curvature import ESTIMATORS, CurvatureError, Estimator
from edge_client.curvature.layers import supported_layer
from edge_client.exchange import Evaluation, Exchange, InProcessExchange, StepResult
from edge_client.synchroniser import PreconditionedLayer, Synchroniser

log = logging.getLogger(__name__)

CurvatureScope = Literal["shared", "local"]


class NewtonOptimizer(torch.optim.Optimizer):
    """Second-order steps on one device, or on many that share their gradients.

    With the synchronised gradient G of a layer and its curvature estimate H, the direction is P = (H + damping)^-1 G,
    scaled down for all layers together where the step would leave the trust region `kl_clip`. Then, as in SGD with
    momentum, B = momentum * B + P and W -= lr * B. Parameters without a curvature estimate take their gradient for P;
    a warning names their layers. The loss must be a mean over the samples of the batch.

    While the user's own `backward` runs, hooks send each layer's gradient (and in shared scope its curvature
    statistics) to the exchange; `step` waits for the synchronised values, inverts, and updates.

    Args:
        model: its parameters that require gradients are optimised; hooks are put on its layers.
        lr: step size.
        curvature: name of the estimator, one of `edge_client.curvature.ESTIMATORS`.
        exchange: how devices synchronise; None for one device alone.
        param_groups: groups of the model's parameters with options of their own (lr, momentum, weight_decay, damping);
            by default one group of all.
        momentum: weight of the past directions; None for what suits the estimator.
        weight_decay: decoupled: W -= lr * weight_decay * W.
        damping: added to the curvature's eigenvalues; None for what suits the estimator.
        kl_clip: bound on lr^2 * P . G, summed over the layers; infinity for none.
        ema: weight of the past in the running curvature.
        curvature_scope: "shared" averages curvature statistics over the devices, which stay identical; "local" uses
            this device's own and averages the parameters every `average_every` steps.
        average_every: steps between two averages of the parameters in local scope.
        factor_every: steps between two updates of the curvature statistics.
        inverse_every: updates of the statistics between two inversions.
        training_samples: how many private samples this device holds; told to the coordinator.

    Raises:
        ValueError: an option has an impossible value; the text names it.
        ExchangeError: the coordinator is down or refuses this device.

    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        *,
        curvature: str = "kfac",
        exchange: Exchange | None = None,
        param_groups: Iterable[dict[str, Any]] | None = None,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        damping: float | None = None,
        kl_clip: float = 0.001,
        ema: float = 0.9,
        curvature_scope: CurvatureScope = "shared",
        average_every: int = 10,
        factor_every: int = 1,
        inverse_every: int = 1,
        training_samples: int = 0,
    ) -> None:
        estimator = _estimator(curvature)
        damping = estimator.default_damping if damping is None else damping
        momentum = estimator.default_momentum if momentum is None else momentum
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping}
        intervals = {"average_every": average_every, "factor_every": factor_every, "inverse_every": inverse_every}
        options: dict[str, Any] = {
            **defaults,
            **intervals,
            "curvature": curvature,
            "curvature_scope": curvature_scope,
            "kl_clip": kl_clip,
            "ema": ema,
        }
        _check_options(options, intervals)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise ValueError("the model has no parameter that requires a gradient; nothing is to be optimised")
        super().__init__(param_groups if param_groups is not None else trainable, defaults)
        self._kl_clip = kl_clip
        self._is_local = curvature_scope == "local"
        self._average_every = average_every
        self._inverse_every = inverse_every
        self._layers = _precondition_layers(model, self._groups(), estimator, ema)
        self._synchroniser = Synchroniser(
            model,
            self._layers,
            exchange if exchange is not None else InProcessExchange(),
            shares_curvature=not self._is_local,
            averages_parameters=self._is_local,
            factor_every=factor_every,
        )
        self.last_result: StepResult | None = None
        self._synchroniser.start({name: str(value) for name, value in options.items()}, training_samples)

    @property
    def steps(self) -> int:
        """Number of the step that is on, or comes next."""
        return self._synchroniser.steps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Wait for the synchronised gradients, invert the curvature, and update the parameters.

        Args:
            closure: computes the loss and its gradients anew; its loss is returned.

        Raises:
            ExchangeError: the step did not commit; the parameters are unchanged.

        """
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.report(float(loss))
        averages = self._is_local and self.steps > 0 and self.steps % self._average_every == 0
        result = self._synchroniser.collect(average=averages)
        if averages:
            self._load_averages(result)
        self._update_curvature(result)
        self._apply(result)
        self.last_result = result
        return loss

    def report(self, loss: float, evaluation: Evaluation | None = None) -> None:
        """Say how this batch went; user interfaces show it. Call it before `step`."""
        self._synchroniser.report(loss, evaluation)

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate gradients: inside, a backward sends nothing; the first one after it sends the sum."""
        return self._synchroniser.pause()

    @torch.no_grad()
    def synchronise(self) -> None:
        """Make the devices' models identical: average buffers, and in local scope parameters. Call it at the end."""
        result = self._synchroniser.average()
        if result is not None:
            self._load_averages(result)

    def close(self) -> None:
        """Take the hooks off the model; the exchange stays open."""
        self._synchroniser.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of parameters, groups and curvature."""
        state = super().state_dict()
        state["curvature"] = {layer.name: layer.estimator.state_dict() for layer in self._layers}
        state["steps"] = self.steps
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave.

        Raises:
            ValueError: it belongs to another model; the text names the layers.

        """
        state = dict(state_dict)
        curvature, steps = state.pop("curvature", {}), state.pop("steps", 0)
        names = {layer.name for layer in self._layers}
        if curvature.keys() != names:
            raise ValueError(
                f"the state has curvature for the layers {sorted(curvature)}, but the optimizer has {sorted(names)}"
            )
        super().load_state_dict(state)
        for layer in self._layers:
            layer.estimator.load_state_dict(curvature[layer.name])
        self._synchroniser.resume_at(steps)

    # ------------------------------------------------------------------ the step itself

    def _groups(self) -> dict[Tensor, dict[str, Any]]:
        """Return each optimised parameter's group."""
        return {parameter: group for group in self.param_groups for parameter in group["params"]}

    def _load_averages(self, result: StepResult) -> None:
        for name, tensor in self._synchroniser.averaged().items():
            tensor.copy_(result.tensors["parameter", name])

    def _update_curvature(self, result: StepResult) -> None:
        for layer in self._layers:
            if not layer.statistics:
                continue
            if not self._is_local:
                layer.statistics = {name: result.tensors[layer.key(name)] for name in layer.statistics}
            layer.estimator.update(layer.statistics)
            layer.statistics = {}
            if (layer.estimator.updates - 1) % self._inverse_every == 0:
                try:
                    layer.estimator.refresh()
                except CurvatureError as error:
                    log.warning("layer %s keeps its last inverse: %s", layer.name, error)

    def _apply(self, result: StepResult) -> None:
        groups = self._groups()
        names = self._synchroniser.names
        gradients: dict[Tensor, Tensor] = {p: result.tensors["gradient", name] for p, name in names.items()}
        directions, model_decrease = self._precondition(gradients, groups)
        # With P = H^-1 G, P . G is twice the Kullback-Leibler divergence that the quadratic model predicts for lr = 1.
        scale = math.sqrt(self._kl_clip / model_decrease) if model_decrease > self._kl_clip else 1.0
        for parameter, group in groups.items():
            if parameter in directions:
                self._update_parameter(parameter, directions[parameter] * scale, group)
            elif parameter in gradients:
                self._update_parameter(parameter, gradients[parameter], group)

    def _precondition(
        self, gradients: Mapping[Tensor, Tensor], groups: Mapping[Tensor, dict[str, Any]]
    ) -> tuple[dict[Tensor, Tensor], float]:
        """Return the preconditioned gradients P, and the sum of lr^2 P . G over them."""
        directions: dict[Tensor, Tensor] = {}
        model_decrease = 0.0
        for state in self._layers:
            parameters = state.layer.parameters
            group = groups[state.layer.weight]
            gradient = state.layer.to_matrix({name: gradients[p] for name, p in parameters.items()})
            direction = state.estimator.precondition(gradient, group["damping"])
            if not direction.isfinite().all():
                log.warning("layer %s: its preconditioned gradient is not finite; it takes the plain one", state.name)
                continue
            model_decrease += group["lr"] ** 2 * float((direction * gradient).sum())
            directions |= {parameters[name]: part for name, part in state.layer.from_matrix(direction).items()}
        return directions, model_decrease

    def _update_parameter(self, parameter: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        if group["momentum"]:
            state = self.state[parameter]
            if "momentum_buffer" in state:
                direction = state["momentum_buffer"].mul_(group["momentum"]).add_(direction)
            else:
                state["momentum_buffer"] = direction.clone()
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])


def _precondition_layers(
    model: nn.Module, optimised: Collection[Tensor], estimator: type[Estimator], ema: float
) -> list[PreconditionedLayer]:
    """Give each supported layer an estimator, and name the others in one warning."""
    layers: list[PreconditionedLayer] = []
    covered: set[Tensor] = set()
    for name, module in model.named_modules():
        layer = supported_layer(name, module)
        if layer is None:
            continue
        parameters = set(layer.parameters.values())
        if parameters <= set(optimised) and covered.isdisjoint(parameters):
            covered |= parameters
            layers.append(PreconditionedLayer(layer, estimator(layer.in_features, layer.out_features, ema)))
    missed = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if any(p.requires_grad and p not in covered for p in module.parameters(recurse=False))
    ]
    if missed:
        warnings.warn(
            "no curvature estimator supports these layers; their parameters take plain gradient steps with "
            f"momentum: {', '.join(missed)}",
            stacklevel=3,
        )
    return layers


def _estimator(name: str) -> type[Estimator]:
    if name not in ESTIMATORS:
        raise ValueError(f"curvature is {name!r}; known are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def _check_options(options: Mapping[str, Any], intervals: Collection[str]) -> None:
    for name in ("lr", "momentum", "weight_decay", "damping", "kl_clip", "ema"):
        if not options[name] >= 0:
            raise ValueError(f"{name} is {options[name]}; it cannot be negative")
    for name in ("damping", "kl_clip"):
        if options[name] == 0:
            raise ValueError(f"{name} is 0; it must be above 0")
    for name in ("ema", "momentum"):
        if options[name] >= 1:
            raise ValueError(f"{name} is {options[name]}; it must be below 1")
    for name in intervals:
        if options[name] < 1:
            raise ValueError(f"{name} is {options[name]}; it must be at least 1")
    if options["curvature_scope"] not in ("shared", "local"):
        raise ValueError(f"curvature_scope is {options['curvature_scope']!r}; known are shared, local")
