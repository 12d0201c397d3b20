"""The preconditioner of a whole model: an estimator for each supported layer, and the damping that they share."""

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from edge_client.curvature.estimators import Estimator, EstimatorOptions, Statistics
from edge_client.curvature.layers import Layer, supported_layer
from edge_client.curvature.linalg import CurvatureError

log = logging.getLogger(__name__)

SMALLEST_DAMPING = 1e-20
"""A curvature of 0 everywhere needs some damping to be divided by."""


class PreconditionedLayer:
    """A layer and its curvature estimator."""

    def __init__(self, layer: Layer, estimator: Estimator) -> None:
        self.layer = layer
        self.estimator = estimator
        self.is_ready = False
        """Whether the estimator has been refreshed once."""
        self.is_explained = True
        """Whether the layer's gradient comes from calls of the layer alone: the curvature is that of what they saw."""
        self.is_doubted = False
        """Whether this device has seen otherwise; devices that share curvature give a layer's up together."""
        self._kind = (layer.weight.dtype, layer.weight.device)

    @property
    def name(self) -> str:
        """Name of the module in the model."""
        return self.layer.name

    def is_optimised(self, gradients: Mapping[Tensor, Tensor]) -> bool:
        """Whether the layer's parameters have gradients, and none was frozen since."""
        parameters = self.layer.parameters.values()
        return all(parameter in gradients and parameter.requires_grad for parameter in parameters)

    def follow(self) -> None:
        """Bring the estimate to the dtype and device that the weight has now."""
        weight = self.layer.weight
        if self._kind != (weight.dtype, weight.device):
            self._kind = (weight.dtype, weight.device)
            self.estimator.load_state_dict(_moved(self.estimator.state_dict(), weight))

    def no_statistics(self) -> dict[str, Tensor]:
        """Return the statistics of a batch that did not use the layer: zeros."""
        return {name: self.layer.weight.new_zeros(shape) for name, shape in self.estimator.statistic_shapes.items()}

    def matrix(self, gradients: Mapping[Tensor, Tensor]) -> Tensor:
        """Return the gradients of the layer's parameters as `[blocks, out, in]`."""
        return self.layer.to_matrix({name: gradients[p] for name, p in self.layer.parameters.items()})


class Direction(NamedTuple):
    """What a layer is to be moved along."""

    layer: Layer
    matrix: Tensor
    """H^-1 G, `[blocks, out, in]`."""
    alignment: float
    """Its inner product with the gradient G."""


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
        self.update_s = 0.0
        """Seconds that the last step took to update and invert the curvature."""
        self._estimator = estimator
        self._options = options
        self._failed: set[str] = set()
        self.extend(model, optimised)

    def extend(self, model: nn.Module, optimised: Collection[Tensor]) -> list[PreconditionedLayer]:
        """Precondition the layers of a model that are not yet, and return them; the others are named in a warning."""
        estimator, known = self._estimator, {state.name for state in self.layers}
        modules = [(name, module) for name, module in model.named_modules() if _trainable(module)]
        owners = Counter(parameter for _, module in modules for parameter in _trainable(module))
        added: list[PreconditionedLayer] = []
        missed: dict[str, nn.Module] = {}
        for name, module in modules:
            if name in known:
                continue
            layer = supported_layer(name, module)
            is_tied = any(owners[parameter] > 1 for parameter in _trainable(module))
            is_whole = layer is not None and set(layer.parameters.values()) <= set(optimised)
            if layer is not None and is_whole and not is_tied and estimator.supports(layer.shape):
                added.append(PreconditionedLayer(layer, estimator(layer.shape, self._options)))
            else:
                reason = ", weight shared with another layer" if is_tied else ""
                missed[f"{name or 'the model itself'} ({type(module).__name__}{reason})"] = module
        self.layers += added
        self._by_weight = {state.layer.weight: state for state in self.layers}
        if missed:
            warnings.warn(
                f"the estimator {estimator.name!r} does not support these layers; their parameters, "
                f"{_share(missed.values(), model):.0%} of the model's, take plain gradient steps with momentum: "
                f"{', '.join(missed)}",
                stacklevel=4,
            )
        return added

    def layer_of(self, parameter: Tensor) -> PreconditionedLayer | None:
        """Return the layer whose weight a parameter is, if it is one's."""
        return self._by_weight.get(parameter)  # type: ignore[call-overload, no-any-return]

    def step(
        self,
        gradients: Mapping[Tensor, Tensor],
        statistics: Mapping[str, Statistics],
        *,
        damping_of: Callable[[Tensor], float] | None,
    ) -> list[Direction]:
        """Take a step's statistics into the estimates, and precondition its gradients.

        Args:
            gradients: the synchronised gradient of each parameter.
            statistics: by layer, of those whose estimate is updated; a layer that is missing keeps its own.
            damping_of: returns the damping of a parameter, in units of the mean curvature, where inverses are computed
                anew; None for those that there are.

        """
        began = time.perf_counter()
        layers = [state for state in self.layers if state.is_optimised(gradients)]
        for state in layers:
            state.follow()
            if state.name in statistics:
                state.estimator.update(statistics[state.name], state.matrix(gradients))
        if damping_of is not None:
            self._refresh_all(damping_of)
        self.update_s = time.perf_counter() - began
        return [direction for state in layers if (direction := self._direction(state, gradients)) is not None]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all estimators, by layer."""
        return {
            state.name: {
                "is_ready": state.is_ready,
                "is_explained": state.is_explained,
                "estimator": state.estimator.state_dict(),
            }
            for state in self.layers
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
            state.is_explained = saved[state.name].get("is_explained", True)
            state.is_doubted = not state.is_explained
            state.estimator.load_state_dict(_moved(saved[state.name]["estimator"], state.layer.weight))

    def _refresh_all(self, damping_of: Callable[[Tensor], float]) -> None:
        updated = [state for state in self.layers if state.estimator.updates]
        # Personal layers are measured in the unit of the common ones, which must be the same on all devices.
        common = [state for state in updated if not state.layer.is_personal] or updated
        unit = mean_curvature(
            (state.estimator.trace for state in common), (state.estimator.shape.size for state in common)
        )
        for state in updated:
            self._refresh(state, max(damping_of(state.layer.weight) * unit, SMALLEST_DAMPING))

    def _refresh(self, state: PreconditionedLayer, damping: float) -> None:
        try:
            state.estimator.refresh(damping)
        except CurvatureError as error:
            instead = "it keeps its last inverse" if state.is_ready else "it takes plain gradient steps"
            self._warn_once(state, f"{error}; {instead}")
        else:
            state.is_ready = True

    def _direction(self, state: PreconditionedLayer, gradients: Mapping[Tensor, Tensor]) -> Direction | None:
        """Return a layer's direction; None where its parameters take their plain gradients."""
        if not (state.is_ready and state.is_explained):
            return None
        gradient = state.matrix(gradients)
        direction = state.estimator.precondition(gradient)
        alignment = float((direction * gradient).sum())
        # One number tells whether any element is not finite.
        if not abs(alignment) < float("inf"):
            self._warn_once(state, "its preconditioned gradient is not finite; it takes the plain one")
            return None
        return Direction(state.layer, direction, alignment)

    def _warn_once(self, state: PreconditionedLayer, problem: str) -> None:
        if state.name not in self._failed:
            self._failed.add(state.name)
            log.warning("layer %s: %s", state.name, problem)


def mean_curvature(traces: Iterable[float], sizes: Iterable[int]) -> float:
    """Return the mean eigenvalue of the curvature over all layers; damping is measured in it."""
    total = sum(sizes)
    return sum(traces) / total if total else 0.0


def _moved(value: Any, like: Tensor) -> Any:
    """Return a state with its tensors on another tensor's device, those of real numbers in its dtype."""
    if isinstance(value, Tensor):
        return value.to(like) if value.is_floating_point() else value.to(like.device)
    if isinstance(value, Mapping):
        return {name: _moved(inner, like) for name, inner in value.items()}
    return value


def _share(modules: Iterable[nn.Module], model: nn.Module) -> float:
    """Return the part of a model's trainable parameters that belong to modules themselves."""
    those = {parameter for module in modules for parameter in _trainable(module)}
    total = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return sum(parameter.numel() for parameter in those) / total


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
