"""Settings of training on a device: typed, with their limits, checked where they enter."""

import inspect
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edge_client.curvature.estimators.base import Inversion
from edge_client.curvature.inputs import WeightSharing
from edge_client.optim.newton import CurvatureScope, Fisher, NewtonOptimizer
from edge_client.tasks import PartitionKind

_OPTIMIZER = inspect.signature(NewtonOptimizer).parameters

OPTIMIZER_OPTIONS = (
    "lr",
    "curvature",
    "momentum",
    "weight_decay",
    "damping",
    "kl_clip",
    "update_clip",
    "ema",
    "curvature_scope",
    "average_every",
    "warmup_steps",
    "factor_every",
    "inverse_every",
    "weight_sharing",
    "inversion",
    "fisher",
    "adaptive_damping",
    "adapt_every",
)
"""Settings that are handed to `NewtonOptimizer`, whose defaults they share."""


Auto = Annotated[None, BeforeValidator(lambda value: None if value == "auto" else value)]
"""Left to the optimizer; written "auto" in texts, which know no None."""


class SettingsError(ValueError):
    """A setting is unknown or has an impossible value; the text names it."""


def _default(option: str) -> Any:
    return _OPTIMIZER[option].default


class TrainSettings(BaseModel):
    """What a device trains, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = "digits"
    """Name of a built-in task, or import path of your own ("package.module:Class")."""
    steps: Annotated[int, Field(ge=1)] = 60
    """Batches that each device trains."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Samples in a device's batch."""
    partition: PartitionKind = "dirichlet"
    """How the training data are spread over the devices: alike, with label skew, or by their natural groups."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3
    """Concentration of the Dirichlet partition; the smaller, the more skew."""
    seed: int = 0
    """Seeds the initial weights, the partition and the batches."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two evaluations on the device's held-out samples; 0 for none."""
    threads: Annotated[int, Field(ge=0)] = 1
    """Threads that torch may use; 0 leaves it to torch."""

    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Auto = _default("lr")
    """Step size; "auto" for what suits the estimator."""
    curvature: str = _default("curvature")
    """Estimator of the inverse Hessian."""
    curvature_scope: CurvatureScope = _default("curvature_scope")
    """Whether devices average their curvature ("shared") or their parameters ("local")."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | Auto = _default("momentum")
    """Weight of the past directions; "auto" for what suits the estimator."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _default("weight_decay")
    """Decoupled weight decay."""
    damping: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Auto = _default("damping")
    """Added to the curvature's eigenvalues, in units of their mean; "auto" for what suits the estimator."""
    kl_clip: Annotated[float, Field(gt=0)] | Auto = _default("kl_clip")
    """Size of the trust region; "auto" for what suits the estimator."""
    update_clip: Annotated[float, Field(gt=0)] | Auto = _default("update_clip")
    """Largest step of a layer, as a part of its weights' norm; "auto" for what suits the estimator."""
    ema: Annotated[float, Field(ge=0, lt=1)] = _default("ema")
    """Weight of the past in the running curvature."""
    average_every: Annotated[int, Field(ge=1)] = _default("average_every")
    """Steps between two averages of the parameters in local scope."""
    warmup_steps: Annotated[int, Field(ge=0)] = _default("warmup_steps")
    """First steps, each of which updates and inverts the curvature."""
    factor_every: Annotated[int, Field(ge=1)] = _default("factor_every")
    """Later, steps between two updates of the curvature statistics."""
    inverse_every: Annotated[int, Field(ge=1)] = _default("inverse_every")
    """Later, steps between two inversions."""
    weight_sharing: WeightSharing = _default("weight_sharing")
    """How the uses of a weight within a sample count."""
    inversion: Inversion = _default("inversion")
    """How Kronecker factors are inverted."""
    fisher: Fisher = _default("fisher")
    """Whether the curvature's gradients are those of the labels, or of labels that the model's predictions give."""
    adaptive_damping: bool = _default("adaptive_damping")
    """Let the damping follow how well the quadratic model predicts the loss."""
    adapt_every: Annotated[int, Field(ge=1)] = _default("adapt_every")
    """Steps between two such comparisons, each of which costs a forward pass."""

    def optimizer_options(self) -> dict[str, Any]:
        """Return what `NewtonOptimizer` takes."""
        return {name: getattr(self, name) for name in OPTIMIZER_OPTIONS}


def check_settings(values: Mapping[str, object]) -> TrainSettings:
    """Return settings from names (with dashes or underscores) and values.

    Raises:
        SettingsError: a name is unknown or a value impossible; the text names them all.

    """
    try:
        return TrainSettings.model_validate({name.replace("-", "_"): value for name, value in values.items()})
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe, error.errors()))) from None


def parse_settings(assignments: Iterable[str]) -> TrainSettings:
    """Return settings from texts such as "steps=50" or "curvature='eva'", as `flwr run -c` takes them.

    Raises:
        SettingsError: a text is no assignment, a name is unknown or a value impossible.

    """
    values: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"{assignment!r} is not of the form name=value")
        try:
            values[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name.strip()] = text.strip()
    return check_settings(values)


def _describe(problem: Any) -> str:
    name = str(problem["loc"][0]).replace("_", "-")
    if problem["type"] == "extra_forbidden":
        known = ", ".join(field.replace("_", "-") for field in TrainSettings.model_fields)
        return f"setting {name!r} is unknown; known are {known}"
    return f"setting {name!r} is {problem['input']!r}: {problem['msg']}"
