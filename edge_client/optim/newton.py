"""NewtonOptimizer: a torch optimizer whose step is the inverse Hessian times the gradient of all devices together."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from edgenewton.common.evaluation import Evaluation
from torch import Tensor, nn

from edge_client.curvature import ESTIMATORS, Estimator, EstimatorOptions
from edge_client.curvature.estimators.base import Inversion
from edge_client.curvature.inputs import WeightSharing
from edge_client.curvature.preconditioner import Preconditioner
from edge_client.exchange import Exchange, InProcessExchange, StepResult
from edge_client.optim.trust_region import AdaptiveDamping
from edge_client.sync.every_batch import Synchroniser
from edge_client.sync.replica import ModelReplica

CurvatureScope = Literal["shared", "local"]
Fisher = Literal["empirical", "sampled"]

_DECREASE = "loss decrease"
"""Name of the number that adaptive damping exchanges."""


class NewtonOptimizer(torch.optim.Optimizer):
    """Second-order steps on one device, or on many that share their gradients.

    With the synchronised gradient G of a layer and its curvature estimate H, the direction is P = (H + damping)^-1 G,
    scaled down for all layers together where the step would leave the trust region `kl_clip`, and for a layer where it
    would change the weights by more than the part `update_clip`. Then, as in SGD with momentum, B = momentum * B + P
    and W -= lr * B. Parameters without a curvature estimate take their gradient for P; a warning names their layers.
    The loss must be a mean over the samples of the batch.

    While the user's own `backward` runs, hooks send each layer's gradient (and in shared scope its curvature
    statistics) to the exchange; `step` waits for the synchronised values, inverts, and updates.

    Args:
        model: its parameters that require gradients are optimised; hooks are put on its layers. To compile it, compile
            it after the optimizer was made.
        lr: step size; None for what suits the estimator.
        curvature: name of the estimator, one of `edge_client.curvature.ESTIMATORS`.
        exchange: how devices synchronise; None for one device alone.
        param_groups: groups of the model's parameters with options of their own (lr, momentum, weight_decay, damping);
            by default one group of all.
        momentum: weight of the past directions; None for what suits the estimator.
        weight_decay: decoupled: W -= lr * weight_decay * W.
        damping: added to the curvature's eigenvalues, in units of their mean over all layers; None for what suits the
            estimator.
        kl_clip: bound on lr^2 * P . G, summed over the layers; infinity for none; None for what suits the estimator.
        update_clip: bound on the norm of a layer's step, as a part of its weights' norm; infinity for none; None for
            what suits the estimator.
        ema: weight of the past in the running curvature.
        curvature_scope: "shared" averages curvature statistics over the devices, which stay identical; "local" uses
            this device's own and averages the parameters every `average_every` steps.
        average_every: steps between two averages of the parameters in local scope.
        warmup_steps: first steps, each of which updates and inverts the curvature.
        factor_every: later, steps between two updates of the curvature statistics.
        inverse_every: later, steps between two inversions.
        weight_sharing: "expand" or "reduce": how the uses of a weight within a sample count.
        inversion: "cholesky" damps each Kronecker factor on its own; "eigen" damps their product exactly, and takes
            longer.
        fisher: "empirical" uses the gradients of the loss itself, "sampled" those that `sample_fisher` is given.
        adaptive_damping: let the damping follow how well the quadratic model predicts the loss; `step` then needs
            `reevaluate`.
        adapt_every: steps between two such comparisons.
        training_samples: how many private samples this device holds; told to the coordinator.
        state: from `state_dict`, to go on from; the model then has the weights that belong to it.

    Raises:
        ValueError: an option has an impossible value; the text names it.
        ExchangeError: the coordinator is down or refuses this device.

    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | None = None,
        *,
        curvature: str = "kfac",
        exchange: Exchange | None = None,
        param_groups: Iterable[dict[str, Any]] | None = None,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        damping: float | None = None,
        kl_clip: float | None = None,
        update_clip: float | None = None,
        ema: float = 0.9,
        curvature_scope: CurvatureScope = "shared",
        average_every: int = 10,
        warmup_steps: int = 20,
        factor_every: int = 10,
        inverse_every: int = 10,
        weight_sharing: WeightSharing = "expand",
        inversion: Inversion = "cholesky",
        fisher: Fisher = "empirical",
        adaptive_damping: bool = False,
        adapt_every: int = 5,
        training_samples: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        estimator = _estimator(curvature)
        suitable = estimator.defaults
        defaults = {
            "lr": suitable.lr if lr is None else lr,
            "momentum": suitable.momentum if momentum is None else momentum,
            "weight_decay": weight_decay,
            "damping": suitable.damping if damping is None else damping,
        }
        options: dict[str, Any] = {
            **defaults,
            "kl_clip": suitable.kl_clip if kl_clip is None else kl_clip,
            "update_clip": suitable.update_clip if update_clip is None else update_clip,
            "ema": ema,
            "average_every": average_every,
            "warmup_steps": warmup_steps,
            "factor_every": factor_every,
            "inverse_every": inverse_every,
            "adapt_every": adapt_every,
            "curvature": curvature,
            "curvature_scope": curvature_scope,
            "weight_sharing": weight_sharing,
            "inversion": inversion,
            "fisher": fisher,
            "adaptive_damping": adaptive_damping,
        }
        _check_options(options)
        _check_model(model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(param_groups if param_groups is not None else trainable, defaults)
        self._kl_clip: float = options["kl_clip"]
        self._update_clip: float = options["update_clip"]
        self._is_local = curvature_scope == "local"
        self._average_every = average_every
        self._factor_every = factor_every
        self._inverse_every = inverse_every
        self._adapt_every = adapt_every
        self._adaptive = AdaptiveDamping() if adaptive_damping else None
        self._promised = 0.0
        self._preconditioner = Preconditioner(
            model, self._groups(), estimator, EstimatorOptions(ema, weight_sharing, inversion)
        )
        self._synchroniser = Synchroniser(
            model,
            self._preconditioner.layers,
            exchange if exchange is not None else InProcessExchange(),
            shares_curvature=not self._is_local,
            averages_parameters=self._is_local,
            scalars=[_DECREASE] if adaptive_damping else [],
            factor_every=factor_every,
            warmup_steps=warmup_steps,
            samples_fisher=fisher == "sampled",
        )
        self.last_result: StepResult | None = None
        self.exchange_s = 0.0
        """Seconds that the last step waited for the other devices, after its own backward."""
        self.curvature_s = 0.0
        """Seconds that the last step took to update and invert the curvature."""
        if state is not None:
            self.load_state_dict(state)
        replica = ModelReplica(
            model,
            self,
            next_step=None if state is None else state["steps"],
            is_shared=not self._is_local,
            apply=self._take,
            buffers=self._synchroniser.buffers_before_batch,
        )
        self._synchroniser.start({name: str(value) for name, value in options.items()}, replica, training_samples)

    @property
    def steps(self) -> int:
        """Number of the step that is on, or comes next."""
        return self._synchroniser.steps

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, reevaluate: Callable[[], float] | None = None
    ) -> float | None:
        """Wait for the synchronised gradients, invert the curvature, and update the parameters.

        Args:
            closure: computes the loss and its gradients anew; its loss is returned.
            reevaluate: computes the loss of the same batch without gradients; adaptive damping calls it after the
                update every `adapt_every` steps. Needs the loss from before, from `closure` or `report`.

        Raises:
            ExchangeError: the step did not commit; the parameters are unchanged.
            ValueError: adaptive damping lacks `reevaluate` or the loss.

        """
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = float(closure())
            self.report(loss)
        adapts = self._adaptive is not None and self.steps % self._adapt_every == 0
        before = self._synchroniser.reported_loss
        if adapts and (reevaluate is None or before != before):
            raise ValueError(
                "adaptive_damping compares the loss of a batch before and after the update: call "
                "optimizer.report(loss) and optimizer.step(reevaluate=lambda: loss_fn(model(x), y).item())"
            )
        if self._adaptive is not None and self.steps % self._adapt_every == 1 % self._adapt_every and self.steps:
            # A device that did not take the last step has no decrease to tell; all contribute the same tensors.
            self._synchroniser.add_scalar(_DECREASE, self._promised, replaces=False)
        averages = self._is_local and self.steps > 0 and self.steps % self._average_every == 0
        began = time.perf_counter()
        result = self._synchroniser.collect(average=averages)
        self.exchange_s, self.curvature_s = time.perf_counter() - began, 0.0
        if not result.is_healed:
            self._take(result)
        self.last_result = result
        if adapts and reevaluate is not None and not result.is_healed:
            self._synchroniser.add_scalar(_DECREASE, before - float(reevaluate()))
        return loss

    def report(self, loss: float, evaluation: Evaluation | None = None) -> None:
        """Say how this batch went; user interfaces show it. Call it before `step`."""
        self._synchroniser.report(loss, evaluation)

    def sample_fisher(self, loss: Tensor) -> None:
        """Take the curvature's gradients from `loss`, formed with targets that `sample_targets` drew.

        Call it between forward and backward with fisher="sampled"; the graph is kept for the backward of the real
        loss, which must be the same function of the outputs.
        """
        self._synchroniser.sample_fisher(loss)

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate gradients: inside, a backward sends nothing; the first one after it sends the sum.

        For the gradient, and the curvature, of the whole batch divide the loss of each part by their number.
        """
        return self._synchroniser.pause()

    @torch.no_grad()
    def synchronise(self) -> None:
        """Make the devices' models identical: average buffers, and in local scope parameters. Call it at the end."""
        result = self._synchroniser.average()
        if result is not None:
            self._take(result)

    def close(self) -> None:
        """Take the hooks off the model; the exchange stays open."""
        self._synchroniser.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of parameters, groups and curvature."""
        state = super().state_dict()
        state["curvature"] = self._preconditioner.state_dict()
        state["steps"] = self.steps
        state["began_at"] = self._synchroniser.began_at
        state["damping_factor"] = 1.0 if self._adaptive is None else self._adaptive.factor
        state["promised"] = self._promised
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave.

        Raises:
            ValueError: it belongs to another model; the text names the layers.

        """
        state = dict(state_dict)
        curvature, steps = state.pop("curvature", {}), state.pop("steps", 0)
        self._synchroniser.began_at = state.pop("began_at", 0)
        factor, self._promised = state.pop("damping_factor", 1.0), state.pop("promised", 0.0)
        self._preconditioner.load_state_dict(curvature)
        super().load_state_dict(state)
        if self._adaptive is not None:
            self._adaptive.factor = factor
        self._synchroniser.resume_at(steps)

    # ------------------------------------------------------------------ the step itself

    def _groups(self) -> dict[Tensor, dict[str, Any]]:
        """Return each optimised parameter's group."""
        return {parameter: group for group in self.param_groups for parameter in group["params"]}

    @torch.no_grad()
    def _take(self, result: StepResult) -> None:
        """Apply a committed step, whether or not this device contributed to it: what it holds says what it was."""
        self._load_averages(result)
        names = self._synchroniser.names
        gradients: dict[Tensor, Tensor] = {
            p: result.tensors["gradient", name].to(p.device)
            for p, name in names.items()
            if ("gradient", name) in result.tensors
        }
        if not gradients:
            return
        self._adapt_damping(result)
        began = time.perf_counter()
        self._update_curvature(result, gradients)
        self.curvature_s += time.perf_counter() - began
        self._apply(gradients)

    def _load_averages(self, result: StepResult) -> None:
        for name, tensor in self._synchroniser.averaged().items():
            if ("parameter", name) in result.tensors:
                tensor.copy_(result.tensors["parameter", name])

    def _adapt_damping(self, result: StepResult) -> None:
        decrease = result.tensors.get(("curvature", _DECREASE))
        if self._adaptive is not None and decrease is not None:
            self._adaptive.observe(float(decrease), self._promised)

    def _update_curvature(self, result: StepResult, gradients: Mapping[Tensor, Tensor]) -> None:
        if not self._is_local:
            for layer in self._preconditioner.layers:
                # Not this device's own: it may not have taken part in the step.
                layer.statistics = (
                    {
                        name: result.tensors[layer.key(name)].to(layer.layer.weight.device)
                        for name in layer.estimator.statistic_shapes
                    }
                    if self._synchroniser.is_due(result.step, self._factor_every)
                    else None
                )
        groups = self._groups()
        factor = 1.0 if self._adaptive is None else self._adaptive.factor
        self._preconditioner.update(
            gradients,
            lambda weight: groups[weight]["damping"] * factor,
            refreshes=self._synchroniser.is_due(result.step, self._inverse_every),
        )

    def _apply(self, gradients: Mapping[Tensor, Tensor]) -> None:
        groups = self._groups()
        directions, self._promised = self._preconditioner.directions(
            gradients,
            lambda weight: groups[weight]["lr"],
            kl_clip=self._kl_clip,
            update_clip=self._update_clip,
        )
        for parameter, group in groups.items():
            direction = directions.get(parameter, gradients.get(parameter))
            if direction is not None:
                self._update_parameter(parameter, direction, group)

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


def _estimator(name: str) -> type[Estimator]:
    if name not in ESTIMATORS:
        raise ValueError(f"curvature is {name!r}; known are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


_CHOICES: dict[str, Collection[str]] = {
    "curvature_scope": ("shared", "local"),
    "weight_sharing": ("expand", "reduce"),
    "inversion": ("cholesky", "eigen"),
    "fisher": ("empirical", "sampled"),
}


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("lr", "momentum", "weight_decay", "damping", "kl_clip", "update_clip", "ema", "warmup_steps"):
        if not options[name] >= 0:
            raise ValueError(f"{name} is {options[name]}; it cannot be negative")
    for name in ("damping", "kl_clip", "update_clip"):
        if options[name] == 0:
            raise ValueError(f"{name} is 0; it must be above 0")
    for name in ("ema", "momentum"):
        if options[name] >= 1:
            raise ValueError(f"{name} is {options[name]}; it must be below 1")
    for name in ("average_every", "factor_every", "inverse_every", "adapt_every"):
        if options[name] < 1:
            raise ValueError(f"{name} is {options[name]}; it must be at least 1")
    for name, known in _CHOICES.items():
        if options[name] not in known:
            raise ValueError(f"{name} is {options[name]!r}; known are {', '.join(known)}")


def _check_model(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameter that requires a gradient; nothing is to be optimised")
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled; make the optimizer with the model itself, and compile it afterwards")
