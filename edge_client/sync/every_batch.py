"""An exchange after every batch, with the curvature of all devices together: they stay identical.

Each layer's tensors leave as soon as backward has produced them; `before_update` waits for the synchronised values.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from edgenewton.common.options import check_number
from edgenewton.v1.stage import Stage
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.devices import to_device
from edge_client.exchange import Exchange, InProcessExchange, Membership, StepResult, TensorKey
from edge_client.sync.common_curvature import CommonCurvature
from edge_client.sync.gradients import clip_scale, nonfinite_gradient
from edge_client.sync.host_copies import HostCopies
from edge_client.sync.left_gradients import LeftGradients
from edge_client.sync.model_tensors import ModelTensors, averaged_in, put
from edge_client.sync.parts import Part, parts_of
from edge_client.sync.personal import patterns_of
from edge_client.sync.personal_step import PersonalStep
from edge_client.sync.plan import Report, Subject, SyncPlan, Update
from edge_client.sync.replica import ModelReplica
from edge_client.sync.whitening_stage import whitening_stages


class EveryBatch(SyncPlan):
    """Averages gradients after every batch, and curvature statistics in the steps that update the curvature.

    Buffers, such as running means, are each device's own until `average`.

    Args:
        exchange: the way to the other devices; None for one device alone.
        overlap: send gradients while backward still computes others. They have left then when `step` is called, which
            refuses gradients that were changed meanwhile. Without it `step` sends what it finds, as one device alone
            does: for `clip_grad_norm_`, `torch.amp.GradScaler`, or gradients that are edited by hand.
        clip_grad_norm: bound on the norm of this device's gradient over all parameters, before it leaves; ends overlap.
        whiten: write each layer's gradient in the coordinates in which the curvature that all devices share is the
            unit matrix, where the session's codec keeps few bits.
        training_samples: how many private samples this device holds; the coordinator is told.
        personal: patterns of the names of what never leaves this device: see `personal_names`.

    Raises:
        OptionError: `clip_grad_norm` is impossible.

    """

    is_shared = True

    def __init__(
        self,
        exchange: Exchange | None = None,
        *,
        overlap: bool = True,
        clip_grad_norm: float | None = None,
        whiten: bool = False,
        training_samples: int = 0,
        personal: str | Collection[str] = (),
    ) -> None:
        check_number("clip_grad_norm", clip_grad_norm, above=0)
        self._exchange: Exchange = exchange if exchange is not None else InProcessExchange()
        self._overlaps = overlap and clip_grad_norm is None and not self._exchange.is_alone
        self._clip_grad_norm = clip_grad_norm
        self._whitens = whiten
        self._training_samples = training_samples
        self._patterns = patterns_of(personal)
        self._membership: Membership | None = None
        self._first_step = 0
        self._has_begun = False
        self._is_spoilt = False
        """Whether tensors of a batch that was given up have left already in the step that is on."""
        self._contributed: set[TensorKey] = set()
        self._copies = HostCopies()
        """What is to be contributed as soon as the host has it."""
        self._arrived: set[Tensor] = set()
        """Parameters whose gradient backward has produced."""
        self._left = LeftGradients()
        self._unsent: Mapping[str, Any] = {}
        """What a saved state had still to send."""
        self._aligns = False
        """Whether the parameters are averaged in the step that is on, because the devices round differently."""

    @property
    def step(self) -> int:
        """Number of the step that is on, or comes next."""
        return self._membership.step if self._membership is not None else self._first_step

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used, and whether gradients are written in its coordinates."""
        return {"curvature_scope": "shared", "whiten": self._whitens}

    @property
    def is_joined(self) -> bool:
        """Whether this device has its place."""
        return self._membership is not None

    @property
    def is_alone(self) -> bool:
        """Whether there are no other devices."""
        return self._exchange.is_alone

    @property
    def has_left(self) -> bool:
        """Whether gradients of the batch that is on have left already."""
        return bool(self._left) or self._is_spoilt

    def attach(self, subject: Subject) -> None:
        """Take what is to be synchronised."""
        self._subject = subject
        self._overlaps = self._overlaps and not subject.skips_nonfinite
        self._take_parts()
        self._common = CommonCurvature(subject)
        self.replica = ModelReplica(
            subject.model,
            is_shared=self.is_shared,
            apply=self._apply_missed,
            before=lambda: subject.batch.buffers,
            staying=lambda: self._tensors.staying,
            frozen=lambda: self._tensors.frozen_weights,
        )
        self.replica.register("plan", self._shared_state, self._load_shared)

    def extend(self) -> None:
        """Take note of parameters and layers that have come since."""
        self._take_parts(self._tensors.trained)

    def specs(self) -> list[TensorSpec]:
        """Return gradients, statistics, numbers, what `average` averages, and what is aligned."""
        statistics = (
            _spec(("curvature", _statistic(state, name)), shape, state.layer.weight)
            for state in self._exchanged_layers
            for name, shape in state.estimator.statistic_shapes.items()
        )
        return [
            *(part.spec("gradient") for part in self._parts),
            *statistics,
            *self._doubts_spec(),
            *(TensorSpec(name, (1,), kind="curvature") for name in self._subject.scalars),
            *(_spec(("parameter", name), tensor.shape, tensor) for name, tensor in self._averaged().items()),
            *(self._tensors.weight_specs() if self.is_shared else ()),
        ]

    def join(self, options: Mapping[str, str]) -> None:
        """Take this device's place: see `SyncPlan.join`."""
        self._tensors.settle()
        options = {**options, **self._tensors.options}
        self._membership = self._exchange.join(
            self.specs(), options, self.replica, self._training_samples, self._stages
        )
        self._membership.load_state_dict(self._unsent)
        self._unsent = {}

    def on_gradient(self, parameter: Tensor) -> None:
        """Send a parameter's gradient, and with a weight its layer's statistics, if that is not left to the step."""
        if not self._overlaps or self._subject.batch.samples is None:
            return
        if self._is_spoilt:
            raise RuntimeError("the last batch was given up: call optimizer.zero_grad() before the next backward")
        part = self._part_of.get(parameter)
        if part is None:  # it is personal
            return
        if ("gradient", part.name) in self._contributed or ("gradient", part.name) in self._copies:
            raise RuntimeError(
                f"the gradient of {part.name!r} was already sent in this step; wrap all but the last backward of a "
                "step in `with optimizer.no_sync():`, or let the step send them: EveryBatch(exchange, overlap=False)"
            )
        state = self._layer_of.get(parameter)
        self._arrived.add(parameter)
        try:
            if state is not None and self._updates_curvature:
                self._take_statistics(state, 1.0)
            if not self._arrived.issuperset(part.parameters):
                return
            self._contribute_gradient(part)
        except BaseException:
            self._give_batch_up()
            raise
        self._left.note(part.parameters)

    def discard(self) -> None:
        """Forget the batch: see `SyncPlan.discard`. After an error the rest of the step is skipped."""
        if self._is_spoilt:
            self._skip_rest()
            return
        has_left = self.has_left
        self._give_batch_up()
        if has_left:
            raise RuntimeError(
                "a backward that no step followed has sent its gradients to the other devices already (the gradients "
                "of another model's loss, or of a batch that was given up?): let the step send them, "
                "EveryBatch(exchange, overlap=False)"
            )

    def before_update(self, report: Report) -> Update:
        """Complete this device's contribution, and wait for the synchronised tensors."""
        try:
            self._left.check_unchanged(self._tensors.names)
            self._tensors.check_still()
            samples = self._subject.batch.samples if report.samples is None else report.samples
            is_bad = self._subject.skips_nonfinite and nonfinite_gradient(self._tensors.trained) is not None
            skips = report.is_skipped or samples == 0 or is_bad
            if not self._has_begun:
                self._begin(0 if skips else samples or 1)
            elif report.samples not in (None, self._samples):
                raise RuntimeError(
                    f"step(samples={report.samples}) comes after gradients have left as those of {self._samples} "
                    "samples; let the step send them: EveryBatch(exchange, overlap=False)"
                )
            self._contribute_all(report, skips=skips)
            return self._collect(report, is_skipped=skips)
        except BaseException:
            self._give_batch_up()
            raise

    def after_update(self) -> None:
        """Nothing is left to do: all was exchanged before."""
        return

    def average(self) -> Update | None:
        """Average what differs between the devices, if there is anything, in a step of its own."""
        if not self._averaged():
            return None
        self._begin(1)
        self._contribute_averaged()
        self._contribute_aligned()
        return self._collect(Report())

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the step that comes next, and what this device has still to send."""
        unsent = self._membership.state_dict() if self._membership is not None else self._unsent
        return self._shared_state() | ({"unsent": unsent} if unsent else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a step, unless a coordinator has set it; rounds of local steps that are on have ended then."""
        of_round: Mapping[str, Any] = state.get("round", {})
        of_sent: Mapping[str, Any] = state.get("sent", {})
        self._unsent = {} if of_round else state.get("unsent", {})
        self._load_shared({**state, "step": state["step"] + sum(r.get("batches", 0) for r in (of_round, of_sent))})
        if self._membership is not None:
            self._membership.load_state_dict(self._unsent)

    # ------------------------------------------------------------------ what another scope does otherwise

    def _shared_state(self) -> dict[str, Any]:
        """Return what of the plan is equal on all devices."""
        common = {"common": self._common.state_dict()} if self._whitens else {}
        return {"step": self.step} | common | ({"aligns": True} if self._aligns else {})

    def _load_shared(self, state: Mapping[str, Any]) -> None:
        """Take what `_shared_state` gave."""
        if self._membership is not None:
            self._membership.resume_at(state["step"])
        else:
            self._first_step = self.replica.next_step = state["step"]
        self._aligns = state.get("aligns", False)
        if self._whitens and "common" in state:
            self._common.load_state_dict(state["common"])

    @property
    def _exchanged_layers(self) -> Sequence[PreconditionedLayer]:
        """Layers whose statistics are exchanged."""
        return self._subject.common_layers

    def _averages_in(self, step: int) -> bool:  # noqa: ARG002
        """Whether a step averages what `_averaged` names, too."""
        return False

    def _averaged(self) -> dict[str, Tensor]:
        """Return, by name, the model's tensors that are averaged."""
        return self._tensors.buffers

    def _has_statistics(self, state: PreconditionedLayer) -> bool:
        """Whether a layer's statistics have been taken in the step that is on."""
        names = state.estimator.statistic_shapes
        keys = [("curvature", _statistic(state, name)) for name in names]
        return all(key in self._contributed or key in self._copies for key in keys)

    def _take_statistics(self, state: PreconditionedLayer, loss_scale: float) -> None:
        """Send a layer's statistics of the batch that is on."""
        for name, value in self._subject.batch.take_statistics(state, self.step, loss_scale).items():
            self._contribute(("curvature", _statistic(state, name)), value)

    def _doubts_spec(self) -> list[TensorSpec]:
        """Return the spec of what devices tell of layers that are to do without curvature."""
        count = len(self._exchanged_layers)
        return [TensorSpec(_DOUBTS, (count,), kind="curvature")] if count else []

    def _contribute_doubts(self) -> None:
        """Tell which layers' curvature is to be given up: all devices do it in the same step."""
        if self._exchanged_layers:
            doubts = [float(state.is_doubted) for state in self._exchanged_layers]
            self._contribute(("curvature", _DOUBTS), torch.tensor(doubts))

    def _give_up_doubted(self, result: StepResult) -> None:
        """Let the layers do without curvature that any device doubts."""
        doubts = result.tensors.get(("curvature", _DOUBTS))
        if doubts is not None:
            for state, doubt in zip(self._exchanged_layers, doubts.tolist(), strict=True):
                state.is_explained = state.is_explained and not doubt

    def _statistics(self, result: StepResult) -> dict[str, Statistics]:
        """Return the statistics that a step updates the curvature with."""
        if not self._subject.updates_curvature(result.step):
            return {}
        self._give_up_doubted(result)
        return {
            state.name: {
                name: to_device(result.tensors["curvature", _statistic(state, name)], state.layer.weight.device)
                for name in state.estimator.statistic_shapes
            }
            for state in self._subject.common_layers
        }

    # ------------------------------------------------------------------ inner workings

    @property
    def _updates_curvature(self) -> bool:
        return self._subject.updates_curvature(self.step)

    def _take_parts(self, known: Collection[Tensor] = ()) -> None:
        """Take note of what is exchanged: weight and bias of a layer together, where they are whitened together."""
        self._tensors = ModelTensors(self._subject.model, self._subject.layers, self._patterns, known)
        self.personal = self._tensors.personal
        self._own_step = PersonalStep(self._subject, self._tensors)
        layers = self._subject.common_layers
        self._layer_of: dict[Tensor, PreconditionedLayer] = {state.layer.weight: state for state in layers}
        self._parts = parts_of(self._tensors.names, layers if self._whitens else ())
        self._part_of = {parameter: part for part in self._parts for parameter in part.parameters}

    def _stages(self, spec: TensorSpec) -> Sequence[Stage[Any, Any]]:
        """Return what is done to a tensor before it is written."""
        return whitening_stages(spec, self._parts, self._common.whitening) if self._whitens else ()

    def _begin(self, samples: int) -> None:
        if self._membership is None:
            raise RuntimeError("the optimizer has not joined: call optimizer.zero_grad() or the model before backward")
        self._has_begun = True
        self._samples = samples
        self._membership.begin(samples)

    def _give_batch_up(self) -> None:
        """Forget the batch; what has left of it stays with the others."""
        self._forget_batch()
        self._copies.forget()
        if self._has_begun and not self.is_alone:
            self._is_spoilt = True
        else:
            self._has_begun = False
            self._contributed = set()

    def _skip_rest(self) -> None:
        """Take part with no sample in what is left of the step of a batch that was given up, and apply the others'."""
        assert self._membership is not None
        self._membership.skip()
        self._contribute_all(Report(), skips=True)
        self._subject.apply(self._collect(Report(), is_skipped=True))

    def _contribute(self, key: TensorKey, value: Tensor) -> None:
        if key in self._contributed:  # by a batch that was given up
            return
        if not self._has_begun:
            self._begin(self._subject.batch.samples or 1)
        assert self._membership is not None
        if self.is_alone:  # nothing leaves the device
            self._membership.contribute(key, value)
            self._contributed.add(key)
        else:
            self._copies.begin(key, value)
            self._contribute_copies()

    def _contribute_copies(self, *, waits: bool = False) -> None:
        """Contribute what the host has by now, or all."""
        assert self._membership is not None
        for key, value in self._copies.arrived(waits=waits):
            self._membership.contribute(key, value)
            self._contributed.add(key)

    def _contribute_all(self, report: Report, *, skips: bool) -> None:
        """Contribute what has not left yet; zeros for a batch that is skipped."""
        scale = clip_scale(self._tensors.trained, self._clip_grad_norm) if not skips else 0.0
        if not skips:
            self._own_step.take(self._exchange.device, self.step, scale, report.loss_scale)
        for part in reversed(self._parts):  # as backward goes
            self._contribute_gradient(part, scale)
        if self._updates_curvature:
            for state in self._subject.common_layers:
                if not self._has_statistics(state):
                    if skips:
                        self._subject.batch.forget_layer(state)
                    self._take_statistics(state, report.loss_scale)
            self._contribute_doubts()
        for name, value in report.scalars.items():
            self._contribute(("curvature", name), torch.tensor([value]))
        if self._averages_in(self.step):
            self._contribute_averaged()
        self._contribute_aligned()

    def _contribute_gradient(self, part: Part, scale: float = 1.0) -> None:
        key = ("gradient", part.name)
        if key in self._contributed or key in self._copies:
            return
        # A parameter that this batch did not use has no gradient; the other devices may have one.
        gradient = part.gather(
            {p: p.grad if p.grad is not None and scale else torch.zeros_like(p) for p in part.parameters}
        )
        self._contribute(key, gradient if scale in (0.0, 1.0) else gradient * scale)

    def _contribute_averaged(self) -> None:
        for name, tensor in self._averaged().items():
            self._contribute(("parameter", name), tensor)

    def _aligned(self) -> dict[str, Tensor]:
        """Return, by name, the parameters that are the same on all devices but for rounding."""
        return self._tensors.parameters if self.is_shared else {}

    def _contribute_aligned(self) -> None:
        if self._aligns:
            for name, parameter in self._aligned().items():
                self._contribute(("weight", name), parameter)

    def _collect(self, report: Report, *, is_skipped: bool = False) -> Update:
        if self._membership is None:
            raise RuntimeError("the optimizer has not joined, and has nothing to collect")
        self._contribute_copies(waits=True)
        self._has_begun, self._contributed = False, set()  # all has left, whatever becomes of it
        self._membership.complete(report.loss, report.evaluation, report.hyperparameters)
        result = self._membership.collect()
        update = self._own_step.added_to(Update(result) if result.is_healed else self._received(result))
        self._forget_batch()
        self._is_spoilt = False
        return replace(update, is_skipped=is_skipped)

    def _forget_batch(self) -> None:
        """Forget what is known of the batch that is on."""
        self._subject.batch.forget()
        self._own_step.forget()
        self._left, self._arrived = LeftGradients(), set()

    def _apply_missed(self, result: StepResult) -> None:
        self._subject.apply(self._received(result))

    def _received(self, result: StepResult) -> Update:
        """Load what was averaged, and return what is to be applied."""
        self._aligns = result.aligns_next
        if averaged := averaged_in(result):  # else to list the model's tensors takes a while
            put(self._averaged(), averaged)
        if weights := averaged_in(result, "weight"):
            put(self._aligned(), weights)
        gradients = {
            parameter: gradient
            for part in self._parts
            if ("gradient", part.name) in result.tensors
            for parameter, gradient in part.scatter(result.tensors["gradient", part.name]).items()
            if not (self.is_alone and parameter.grad is None)
        }
        scalars = {
            name: float(result.tensors["curvature", name])
            for name in self._subject.scalars
            if ("curvature", name) in result.tensors
        }
        statistics = self._statistics(result) if gradients else {}
        if self._whitens and statistics and result.samples:
            self._common.update(statistics)
        return Update(result, gradients, statistics, scalars)


_DOUBTS = "layers without curvature"


def _statistic(state: PreconditionedLayer, name: str) -> str:
    """Return the name under which a layer's statistic is exchanged."""
    return f"{state.name}:{name}"


def _spec(key: TensorKey, shape: Sequence[int], like: Tensor) -> TensorSpec:
    kind, name = key
    return TensorSpec(name, tuple(shape), str(like.dtype).removeprefix("torch."), kind)
