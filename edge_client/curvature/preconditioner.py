"""The preconditioner of a whole model: an estimator for each supported layer, and the damping that they share."""

import logging
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edge_client.curvature import CurvatureError, Estimator, EstimatorOptions
from edge_client.curvature.layers import Layer, supported_layer
from edge_client.optim.trust_region import mean_curvature, relative_step_scale, trust_region_scale

log = logging.getLogger(__name__)

_SMALLEST_DAMPING = 1e-20
"""A curvature of 0 everywhere needs some damping to be divided by."""


class PreconditionedLayer:
    """A layer, its curvature estimator, and the statistics of the batch that is on."""

    def __init__(self, layer: Layer, estimator: Estimator) -> None:
        self.layer = layer
        self.estimator = estimator
        self.statistics: dict[str, Tensor] | None = None
        """None between the steps that update the curvature."""
        self.is_ready = False
        """Whether the estimator has been refreshed once."""

    @property
    def name(self) -> str:
        """Name of the module in the model."""
        return self.layer.name

    def key(self, statistic: str) -> tuple[str, str]:
        """Return the key under which a statistic is exchanged."""
        return ("curvature", f"{self.name}:{statistic}")


class Directions(NamedTuple):
    """What the layers' parameters are moved along."""

    of_parameters: dict[Tensor, Tensor]
    """The direction of each parameter that has one, to be multiplied with its step size."""
    promised: float
    """Decrease of the loss that the quadratic model predicts for the step."""


class Preconditioner:
    """Turns the gradients of a model's supported layers into second-order directions.

    Damping is measured in the mean eigenvalue of the curvature over all layers: the same number suits a loss that is
    a sum and one that is a mean, and a layer with small curvature takes steps that are close to plain gradient steps.

    Args:
        model: its supported layers are preconditioned; the others are named in a warning.
        optimised: the parameters that are optimised; a layer is supported only if all of its parameters are.
        estimator: for every layer.
        options: of the estimators.

    """

    def __init__(
        self,
        model: nn.Module,
        optimised: Collection[Tensor],
        estimator: type[Estimator],
        options: EstimatorOptions,
    ) -> None:
        self.layers: list[PreconditionedLayer] = []
        self._failed: set[str] = set()
        modules = [(name, module) for name, module in model.named_modules() if _trainable(module)]
        owners: dict[Tensor, int] = {}
        for _, module in modules:
            for parameter in _trainable(module):
                owners[parameter] = owners.get(parameter, 0) + 1
        missed: list[str] = []
        for name, module in modules:
            layer = supported_layer(name, module)
            is_tied = any(owners[parameter] > 1 for parameter in _trainable(module))
            is_whole = layer is not None and set(layer.parameters.values()) <= set(optimised)
            if layer is not None and is_whole and not is_tied and estimator.supports(layer.shape):
                self.layers.append(PreconditionedLayer(layer, estimator(layer.shape, options)))
            else:
                reason = ", weight shared with another layer" if is_tied else ""
                missed.append(f"{name or 'the model itself'} ({type(module).__name__}{reason})")
        if missed:
            warnings.warn(
                f"the estimator {estimator.name!r} does not support these layers; their parameters take plain "
                f"gradient steps with momentum: {', '.join(missed)}",
                stacklevel=3,
            )

    def update(
        self, gradients: Mapping[Tensor, Tensor], damping_of: Callable[[Tensor], float], *, refreshes: bool
    ) -> None:
        """Take the statistics of a step into the estimates.

        Args:
            gradients: the synchronised gradient of each parameter.
            damping_of: returns the damping of a parameter, in units of the mean curvature.
            refreshes: whether inverses are computed anew.

        """
        for state in self.layers:
            if state.statistics is not None:
                state.estimator.update(state.statistics, self._matrix(state, gradients))
                state.statistics = None
        if not refreshes:
            return
        updated = [state for state in self.layers if state.estimator.updates]
        unit = mean_curvature(
            (state.estimator.trace for state in updated), (state.estimator.shape.size for state in updated)
        )
        for state in updated:
            self._refresh(state, max(damping_of(state.layer.weight) * unit, _SMALLEST_DAMPING))

    def directions(
        self,
        gradients: Mapping[Tensor, Tensor],
        lr_of: Callable[[Tensor], float],
        *,
        kl_clip: float,
        update_clip: float,
    ) -> Directions:
        """Precondition the gradients, and shorten the directions so that the step stays in its trust regions.

        Args:
            gradients: the synchronised gradient of each parameter.
            lr_of: returns the step size of a parameter.
            kl_clip: bound on the sum of lr^2 P . G over the layers; shortens all alike.
            update_clip: bound on the norm of each layer's step, as a part of its weights' norm; shortens this layer.

        """
        found: list[tuple[PreconditionedLayer, Tensor, float]] = []
        for state in self.layers:
            if not state.is_ready:
                continue
            gradient = self._matrix(state, gradients)
            direction = state.estimator.precondition(gradient)
            alignment = float((direction * gradient).sum())
            # One number tells whether any element is not finite.
            if not abs(alignment) < float("inf"):
                self._warn_once(state, "its preconditioned gradient is not finite; it takes the plain one")
                continue
            found.append((state, direction, alignment))
        predicted = sum(lr_of(state.layer.weight) ** 2 * alignment for state, _, alignment in found)
        of_all = trust_region_scale(kl_clip, predicted)
        directions: dict[Tensor, Tensor] = {}
        promised = 0.0
        for state, direction, alignment in found:
            lr, parameters = lr_of(state.layer.weight), state.layer.parameters
            weight_norm = math.hypot(*(float(parameter.norm()) for parameter in parameters.values()))
            step_norm = lr * of_all * float(direction.norm())
            scale = of_all * relative_step_scale(update_clip, step_norm, weight_norm, state.estimator.shape.size)
            promised += (lr * scale - (lr * scale) ** 2 / 2) * alignment
            parts = state.layer.from_matrix(direction * scale)
            directions |= {parameter: parts[name] for name, parameter in parameters.items()}
        return Directions(directions, promised)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all estimators, by layer."""
        return {
            state.name: {"is_ready": state.is_ready, "estimator": state.estimator.state_dict()} for state in self.layers
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave.

        Raises:
            ValueError: it belongs to another model; the text names the layers.

        """
        names = {state.name for state in self.layers}
        if saved.keys() != names:
            raise ValueError(
                f"the state has curvature for the layers {sorted(saved)}, but the optimizer has {sorted(names)}"
            )
        for state in self.layers:
            state.is_ready = saved[state.name]["is_ready"]
            state.estimator.load_state_dict(saved[state.name]["estimator"])

    def _matrix(self, state: PreconditionedLayer, gradients: Mapping[Tensor, Tensor]) -> Tensor:
        return state.layer.to_matrix({name: gradients[p] for name, p in state.layer.parameters.items()})

    def _refresh(self, state: PreconditionedLayer, damping: float) -> None:
        try:
            state.estimator.refresh(damping)
        except CurvatureError as error:
            instead = "it keeps its last inverse" if state.is_ready else "it takes plain gradient steps"
            self._warn_once(state, f"{error}; {instead}")
        else:
            state.is_ready = True

    def _warn_once(self, state: PreconditionedLayer, problem: str) -> None:
        if state.name not in self._failed:
            self._failed.add(state.name)
            log.warning("layer %s: %s", state.name, problem)


def _trainable(module: nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
