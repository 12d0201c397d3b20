"""Settings of training on a device: typed, with their limits, checked where they enter."""

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from edgenewton.common.options import OptionError, flat_names, flatten
from edgenewton.common.suggestions import suggestion
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from edge_client.curvature.probe import Probe
from edge_client.device_name import check_device_name
from edge_client.exchange import Exchange
from edge_client.optim import Curvature, IterateAverage, Refresh, Schedule, TrustRegion
from edge_client.optim.newton import Nonfinite
from edge_client.privacy import PrivacyBudget, Unit
from edge_client.sync import (
    CurvatureScope,
    EveryBatch,
    LocalCurvature,
    LocalSteps,
    Outer,
    Own,
    PrivateGradients,
    PrivateLocalSteps,
    ProbeCurvature,
    Probed,
    Shared,
    SyncPlan,
)
from edge_client.sync.local_curvature import SYNC_EVERY
from edge_client.sync.local_steps import LOCAL_STEPS
from edge_client.sync.personal import patterns_of
from edge_client.tasks import PartitionKind

Auto = Annotated[None, BeforeValidator(lambda value: None if value == "auto" else value)]
"""Left to the optimizer; written "auto" in texts, which know no None."""


Never = Annotated[None, BeforeValidator(lambda value: None if value == "never" else value)]
"""Not done; written "never" in texts."""


def _patterns(value: object) -> object:
    is_list = isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value)
    return patterns_of(value) if is_list or isinstance(value, str) else value  # type: ignore[arg-type]


Cadence = Literal["auto", "every-batch", "local-steps"]
Scope = Literal["shared", "local", "probe", "blend"]
PROBE_SAMPLES = 32
_LOCAL_REFRESH = Refresh(warmup_steps=1, factor_every=100, inverse_every=100, growth=1.5)
PROBE_SHARE = 0.5


class SettingsError(ValueError):
    """A setting is unknown or has an impossible value; the text names it."""


_NOISED_LR = 1.8
_NOISED_TRUST = TrustRegion(damping=0.6, kl_clip=0.1, update_clip=math.inf, shrink_after=math.inf)
_NOISED_AVERAGE = IterateAverage(decay=0.9)
"""For gradients under a privacy budget: what was best over all cases of `benchmarks/privacy/dp.py`."""


class TrainSettings(BaseModel):
    """What a device trains, and how. Each option of the optimizer's groups is a setting of its own."""

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
    seed: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Seeds the initial weights, the partition and the batches."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two evaluations on the device's held-out samples; 0 for none."""
    threads: Annotated[int, Field(ge=0)] = 1
    """Threads that torch may use; 0 leaves it to torch."""
    device: Annotated[str, AfterValidator(check_device_name)] = "cpu"
    """The hardware that trains: "cpu", "cuda" (or "cuda:1"), "mps", or "auto" for the first of CUDA, MPS and the CPU
    that there is. Devices of one session may differ in it."""

    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Auto = None
    """Step size; "auto" for what suits the estimator."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | Auto = None
    """Weight of the past directions; "auto" for what suits the estimator."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay."""
    curvature: Annotated[Curvature, BeforeValidator(lambda v: Curvature(v) if isinstance(v, str) else v)] = Curvature()
    schedule: Annotated[Schedule, BeforeValidator(lambda v: Schedule(v) if isinstance(v, str) else v)] = Schedule()
    """What the step size is multiplied with over the run. Its length is `steps`, over all rounds, unless it has one of
    its own."""
    trust: TrustRegion = TrustRegion()
    refresh: Refresh = Refresh()
    """Unless one of its options is set, steps between exchanges renew the curvature with a growth of 1.5: it takes a
    third less computing, and as many batches."""
    averaging: IterateAverage = IterateAverage()
    """Which average of the iterates is evaluated, served and exported; 0 for the last iterate."""
    nonfinite: Nonfinite = "raise"
    """What becomes of a batch with a gradient that is NaN or infinite: an error ("raise"), or no sample of this device
    in the step ("skip")."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | Never = None
    """Bound on the norm of a device's gradient before it leaves; "never" for none. With it nothing leaves before the
    end of backward."""
    cadence: Cadence = "auto"
    """When devices exchange: gradients after every batch ("every-batch"), or what steps of their own moved the
    parameters by, after as many batches as you say ("local-steps") or as the session chooses ("auto")."""
    local_steps: Annotated[int, Field(ge=1)] = LOCAL_STEPS
    """Batches between two exchanges, with the cadence "local-steps"."""
    overlap: bool = False
    """Whether a device takes the steps of the next round while the mean of its last one is on its way; not with an
    exchange after every batch."""
    outer: Outer = Outer()
    curvature_scope: Scope | Auto = None
    """Whose curvature a device uses: the average of all devices' ("shared"), its own ("local"), that of a common
    synthetic batch ("probe"), or the last two together ("blend"). "auto" is shared with an exchange after every batch,
    which knows no blend, and else a blend."""
    personal: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    """Patterns, as of file names, of the parameters, buffers and modules that never leave a device: a list, or a text
    with commas between them."""
    whiten: bool = False
    """Whether the gradients of every batch are written in the coordinates in which the shared or the synthetic batch's
    curvature is the unit matrix; it matters for codecs of few bits."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Never = None
    """Privacy budget over the whole run: only noised sums of the devices' clipped gradients or moves can be learnt. The
    noise follows from it, `delta`, the number of exchanges and `noise_devices`; "never" for no budget. Needs
    `clip_norm`, `noise_devices`, and the cadence "every-batch" or "local-steps"."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """With a privacy budget: the probability that epsilon does not hold; much less than one in the number of
    devices."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Never = None
    """With a privacy budget: bound on the norm of a device's gradient, of what a round of local steps moves the
    parameters by, or with the unit "sample" of a sample's gradient."""
    noise_devices: Annotated[int, Field(ge=2)] | Never = None
    """With a privacy budget: so many devices share the noise, at least: the session's quorum."""
    privacy_unit: Unit = "device"
    """With a privacy budget: what it hides the presence of, a "device" with all its data, or a "sample"."""
    passes: Annotated[int, Field(ge=1)] | Never = None
    """With a privacy budget of samples: a device goes so many times through its data, at most, and ends then; the noise
    follows from it."""
    sync_every: Annotated[int, Field(ge=1)] = SYNC_EVERY
    """Steps between two averages of the parameters in local scope, with an exchange after every batch."""
    probe_samples: Annotated[int, Field(ge=1)] = PROBE_SAMPLES
    """Samples of the synthetic batch."""
    probe_share: Annotated[float, Field(gt=0, lt=1)] = PROBE_SHARE
    """Share of the synthetic batch in a blend."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._schedule()  # it may not suit the number of steps
        return self

    def optimizer_options(self, *, is_alone: bool = True) -> dict[str, Any]:
        """Return what `NewtonOptimizer` takes, but for the model and the plan; a device may be alone, or not."""
        names = ("lr", "momentum", "weight_decay", "curvature", "trust", "refresh", "averaging", "nonfinite")
        options = {name: getattr(self, name) for name in names}
        options["schedule"] = self._schedule()
        if self.refresh == Refresh() and self._cadence(is_alone=is_alone) != "every-batch":
            options["refresh"] = _LOCAL_REFRESH
        if self.epsilon is not None and self.cadence == "every-batch":
            options |= self._under_noise()
        return options

    def _under_noise(self) -> dict[str, Any]:
        """Return what suits noised gradients where the user has set nothing: see docs/differential-privacy.md."""
        unset = [name for name, value in vars(TrustRegion()).items() if getattr(self.trust, name) == value]
        return {
            "lr": _NOISED_LR if self.lr is None else self.lr,
            "momentum": 0.0 if self.momentum is None else self.momentum,
            "trust": replace(self.trust, **{name: getattr(_NOISED_TRUST, name) for name in unset}),
            "averaging": _NOISED_AVERAGE if self.averaging == IterateAverage() else self.averaging,
        }

    def plan(
        self, exchange: Exchange | None = None, training_samples: int = 0, probe: Callable[[int], Probe] | None = None
    ) -> SyncPlan:
        """Return how a device synchronises.

        Args:
            exchange: with the other devices; None for alone.
            training_samples: how many the device holds.
            probe: returns the task's synthetic batch of so many samples.

        Raises:
            SettingsError: the settings do not suit each other; the text names them.

        """
        options: dict[str, Any] = {
            "clip_grad_norm": self.clip_grad_norm,
            "training_samples": training_samples,
            "personal": self.personal,
        }
        cadence = self._cadence(is_alone=exchange is None or exchange.is_alone)
        if self.epsilon is not None:
            return self._private_plan(self.epsilon, cadence, exchange, training_samples, probe)
        alone = {"clip-norm": self.clip_norm, "noise-devices": self.noise_devices, "passes": self.passes}
        for name in [name for name, value in alone.items() if value is not None]:
            raise SettingsError(f"setting {name!r} is for a privacy budget: set 'epsilon', too, or leave it out")
        scope = self.curvature_scope or ("shared" if cadence == "every-batch" else "blend")
        if scope in ("probe", "blend") and probe is None:
            raise SettingsError(
                f"setting 'curvature-scope' is {scope!r}: that needs a task, which has a synthetic batch"
            )
        if self.whiten and cadence != "every-batch":
            raise SettingsError("setting 'whiten' is for gradients: that needs the cadence 'every-batch'")
        if self.overlap and self.cadence == "every-batch":
            raise SettingsError("setting 'overlap' is for rounds of local steps: the cadence is 'every-batch'")
        if cadence != "every-batch":
            every = self.local_steps if cadence == "local-steps" else None
            options |= {"overlap": self.overlap, "outer": self.outer}
            return LocalSteps(exchange, every, scope=self._scope(scope, probe), **options)
        if scope == "blend":
            raise SettingsError("setting 'curvature-scope' is 'blend': an exchange after every batch knows no blend")
        if scope == "local":
            return LocalCurvature(exchange, self.sync_every, **options)
        if scope == "probe" and probe is not None:
            if options.pop("personal"):
                raise SettingsError(
                    "setting 'curvature-scope' is 'probe': through personal layers a synthetic batch has another "
                    "curvature on each device, which an exchange after every batch does not bear; take 'shared' or "
                    "'local'"
                )
            return ProbeCurvature(probe(self.probe_samples), exchange, whiten=self.whiten, **options)
        return EveryBatch(exchange, whiten=self.whiten, **options)

    def _private_plan(
        self,
        epsilon: float,
        cadence: Cadence,
        exchange: Exchange | None,
        training_samples: int,
        probe: Callable[[int], Probe] | None,
    ) -> SyncPlan:
        """Return the plan under a privacy budget.

        Raises:
            SettingsError: the settings do not suit a budget; the text names them.

        """
        if self.clip_norm is None:
            raise SettingsError(
                f"setting 'epsilon' is {epsilon:g}: a privacy budget needs 'clip-norm', the bound on what a "
                "device may tell in an exchange"
            )
        if self.noise_devices is None:
            raise SettingsError(
                f"setting 'epsilon' is {epsilon:g}: a privacy budget needs 'noise-devices', how many devices share the "
                "noise: the session's quorum"
            )
        if exchange is None or exchange.is_alone:
            raise SettingsError(
                f"setting 'epsilon' is {epsilon:g}: a privacy budget is for what a device tells others, and this one "
                "trains alone"
            )
        if cadence == "auto":
            raise SettingsError(
                f"setting 'epsilon' is {epsilon:g}: a privacy budget needs the cadence 'every-batch' or 'local-steps'; "
                "one that follows the devices' times tells of their data"
            )
        for name, is_set in (("overlap", self.overlap), ("personal", bool(self.personal)), ("whiten", self.whiten)):
            if is_set:
                raise SettingsError(f"setting {name!r} does not go with a privacy budget: leave it, or 'epsilon', out")
        budget = PrivacyBudget(
            epsilon,
            self.delta,
            self.clip_norm,
            self.noise_devices,
            self._private_exchanges(cadence),
            self.privacy_unit,
            self.batch_size if self.privacy_unit == "sample" else 1,
        )
        if cadence == "local-steps":
            scope = self._scope(self.curvature_scope or "local", probe)
            options: dict[str, Any] = {"outer": self.outer, "scope": scope, "clip_grad_norm": self.clip_grad_norm}
            return PrivateLocalSteps(exchange, budget, self.local_steps, **options)
        if self.clip_grad_norm is not None:
            raise SettingsError(
                "setting 'clip-grad-norm' does not go with a privacy budget: 'clip-norm' bounds gradients"
            )
        if self.curvature_scope not in (None, "probe") or probe is None:
            raise SettingsError(
                f"setting 'curvature-scope' is {self.curvature_scope!r}: gradients under a privacy budget have the "
                "curvature of a synthetic batch, 'probe', since any other tells of the data"
            )
        batches_per_pass = max(1, training_samples // self.batch_size)
        if self.passes is not None and self.passes * batches_per_pass < self.steps:
            raise SettingsError(
                f"setting 'passes' is {self.passes}: {self.steps} steps take more of this device's {training_samples} "
                f"samples in batches of {self.batch_size}; take {-(-self.steps // batches_per_pass)} passes, smaller "
                "batches, or fewer steps"
            )
        return PrivateGradients(
            exchange, budget, probe(self.probe_samples), batches_per_pass=batches_per_pass, follows_steps=True
        )

    def _private_exchanges(self, cadence: Cadence) -> int:
        """Return in how many exchanges a unit of the privacy budget is, at most.

        Raises:
            SettingsError: a setting is missing, or does not suit the unit.

        """
        if self.privacy_unit == "device":
            if self.passes is not None:
                raise SettingsError("setting 'passes' is for the privacy unit 'sample': leave it out")
            return self.steps if cadence == "every-batch" else -(-self.steps // self.local_steps)
        if cadence != "every-batch":
            raise SettingsError(
                "setting 'privacy-unit' is 'sample': a round of local steps has no gradients of single samples to "
                f"clip; take the cadence 'every-batch', not {cadence!r}"
            )
        if self.passes is None:
            raise SettingsError(
                "setting 'privacy-unit' is 'sample': it needs 'passes', how many times a device goes through its data"
            )
        return self.passes

    def _schedule(self) -> Schedule:
        """Return the schedule over the run."""
        return replace(self.schedule, steps=self.schedule.steps or self.steps)

    def _cadence(self, *, is_alone: bool) -> Cadence:
        """Return when there is an exchange: a device alone has nobody to wait for."""
        return "every-batch" if self.cadence == "auto" and is_alone else self.cadence

    def _scope(self, scope: Scope, probe: Callable[[int], Probe] | None) -> CurvatureScope:
        if probe is None or scope == "local":
            return Own()
        if scope == "shared":
            return Shared()
        return Probed(probe(self.probe_samples), 1.0 if scope == "probe" else self.probe_share)

    def flat(self) -> dict[str, Any]:
        """Return the settings as texts and numbers by one name each, as `check_settings` takes them.

        What is left to the optimizer is not named.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        flat = {name: value for name, value in flatten(**values).items() if value is not None}
        return {name: ",".join(value) if isinstance(value, tuple) else value for name, value in flat.items()}


GROUPS: dict[str, type[Any]] = {
    "curvature": Curvature,
    "schedule": Schedule,
    "trust": TrustRegion,
    "refresh": Refresh,
    "averaging": IterateAverage,
    "outer": Outer,
}
_PLACES = {flat: (group, field) for group, of_group in GROUPS.items() for flat, field in flat_names(of_group).items()}
"""Group and field of each option in a group, by the name that the setting has."""
UNSET = dict.fromkeys(("adapt_every", "clip_grad_norm", "epsilon", "clip_norm", "noise_devices", "passes"), "never")
"""What is written for None, where that is not "auto"."""


_ALSO_CALLED = {
    "learning-rate": "lr",
    "step-size": "lr",
    "epochs": "steps",
    "batches": "steps",
    "iterations": "steps",
    "estimator": "curvature",
    "optimizer": "curvature",
    "dataset": "task",
    "model": "task",
    "batch": "batch-size",
    "wd": "weight-decay",
    "ema": "averaging",
    "scheduler": "schedule",
    "grad-clip": "clip-grad-norm",
}
"""Words of other software, and what comes nearest to them here."""


def setting_names() -> list[str]:
    """Return the names of all settings, as they are written in texts."""
    names = flatten(**{name: getattr(TrainSettings(), name) for name in TrainSettings.model_fields})
    return [name.replace("_", "-") for name in names]


def check_settings(values: Mapping[str, object]) -> TrainSettings:
    """Return settings from names (with dashes or underscores) and values.

    Raises:
        SettingsError: a name is unknown or a value impossible; the text names them all.

    """
    nested: dict[str, Any] = {}
    for written, value in values.items():
        name = written.replace("-", "_")
        if name in _PLACES:
            group, field = _PLACES[name]
            nested.setdefault(group, {})[field] = None if value == UNSET.get(name, "auto") else value
        elif name in GROUPS:
            nested[f"{name} itself"] = value  # a group is no setting
        else:
            nested[name] = value
    try:
        return TrainSettings.model_validate(nested)
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
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, OptionError):
        return f"setting {cause.name.replace('_', '-')!r} is {cause.value!r}: {cause.expected}"
    name = _setting_of(problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = f"; known are {', '.join(setting_names())}"
        return f"setting {name!r} is unknown{suggestion(name, setting_names(), _ALSO_CALLED) or known}"
    return f"setting {name!r} is {problem['input']!r}: {problem['msg']}"


def _setting_of(place: tuple[Any, ...]) -> str:
    """Return the name of the setting at a place of the nested settings."""
    flat = next((name for name, at in _PLACES.items() if at == place[:2]), str(place[0]).removesuffix(" itself"))
    return flat.replace("_", "-")
