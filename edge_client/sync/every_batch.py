"""An exchange after every batch, with the curvature of all devices together: they stay identical.

Each layer's tensors leave as soon as backward has produced them; `before_update` waits for the synchronised values.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from edgenewton.v1.stage import Stage
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.exchange import Exchange, StepResult, TensorKey
from edge_client.sync.common_curvature import CommonCurvature
from edge_client.sync.exchanging import ExchangingPlan
from edge_client.sync.gradients import clip_scale, nonfinite_gradient
from edge_client.sync.layer_statistics import (
    DOUBTS,
    doubts_of,
    give_up_doubted_in,
    statistic_key,
    statistic_specs,
    statistics_in,
)
from edge_client.sync.left_gradients import LeftGradients
from edge_client.sync.model_tensors import averaged_in, put, spec_of
from edge_client.sync.outbox import Outbox
from edge_client.sync.parts import Part, parts_of
from edge_client.sync.personal_step import PersonalStep
from edge_client.sync.plan import Report, Subject, Update
from edge_client.sync.replica import ModelReplica
from edge_client.sync.whitening_stage import whitening_stages


class EveryBatch(ExchangingPlan):
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
    _kind = "gradient"
    """Of the tensors that the gradients are written in."""

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
        super().__init__(exchange, clip_grad_norm=clip_grad_norm, training_samples=training_samples, personal=personal)
        self._overlaps = overlap and clip_grad_norm is None and not self._exchange.is_alone
        self._whitens = whiten
        self._has_begun = False
        self._is_spoilt = False
        """Whether tensors of a batch that was given up have left already in the step that is on."""
        self._outbox = Outbox()
        self._arrived: set[Tensor] = set()
        """Parameters whose gradient backward has produced."""
        self._left = LeftGradients()

    @property
    def step(self) -> int:
        """Number of the step that is on, or comes next."""
        return self._anchor_step

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used, and whether gradients are written in its coordinates."""
        return {"curvature_scope": "shared", "whiten": self._whitens}

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
        return [
            *(part.spec(self._kind) for part in self._parts),
            *statistic_specs(self._exchanged_layers),
            *(TensorSpec(name, (1,), kind="curvature") for name in self._subject.scalars),
            *(spec_of(("parameter", name), tensor.shape, tensor) for name, tensor in self._averaged().items()),
            *(self._tensors.weight_specs() if self.is_shared else ()),
        ]

    def join(self, options: Mapping[str, str]) -> None:
        """Take this device's place: see `SyncPlan.join`."""
        self._take_place(options, self._stages)

    def on_gradient(self, parameter: Tensor) -> None:
        """Send a parameter's gradient, and with a weight its layer's statistics, if that is not left to the step."""
        if not self._overlaps or self._subject.batch.samples is None:
            return
        if self._is_spoilt:
            raise RuntimeError("the last batch was given up: call optimizer.zero_grad() before the next backward")
        part = self._part_of.get(parameter)
        if part is None:  # it is personal
            return
        if (self._kind, part.name) in self._outbox:
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
            step = self.step
            self._contribute_all(report, skips=skips)
            update = self._collect(report, is_skipped=skips)
            if update.result.is_healed and self.step == step:
                # The others still wait in this very step: without it, this device would end a batch after them.
                update = self._skip()
            return update
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
        unsent = self._still_to_send()
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
        self._resume_at(state["step"])
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
        return all(statistic_key(state, name) in self._outbox for name in state.estimator.statistic_shapes)

    def _take_statistics(self, state: PreconditionedLayer, loss_scale: float) -> None:
        """Send a layer's statistics of the batch that is on."""
        for name, value in self._subject.batch.take_statistics(state, self.step, loss_scale).items():
            self._contribute(statistic_key(state, name), value)

    def _statistics(self, result: StepResult) -> dict[str, Statistics]:
        """Return the statistics that a step updates the curvature with."""
        if not self._subject.updates_curvature(result.step):
            return {}
        give_up_doubted_in(result, self._exchanged_layers)
        return statistics_in(result, self._subject.common_layers)

    def _gradients_of(self, part: Part, mean: Tensor) -> dict[Tensor, Tensor]:
        """Return the gradients of a part's parameters that a mean stands for."""
        return part.scatter(mean)

    # ------------------------------------------------------------------ inner workings

    @property
    def _updates_curvature(self) -> bool:
        return self._subject.updates_curvature(self.step)

    def _take_parts(self, known: Collection[Tensor] = ()) -> None:
        """Take note of what is exchanged: weight and bias of a layer together, where they are whitened together."""
        self._take_tensors(known)
        self._own_step = PersonalStep(self._subject, self._tensors)
        layers = self._subject.common_layers
        self._layer_of: dict[Tensor, PreconditionedLayer] = {state.layer.weight: state for state in layers}
        self._parts = parts_of(self._tensors.names, layers if self._whitens else ())
        self._part_of = {parameter: part for part in self._parts for parameter in part.parameters}

    def _stages(self, spec: TensorSpec) -> Sequence[Stage[Any, Any]]:
        """Return what is done to a tensor before it is written."""
        return whitening_stages(spec, self._parts, self._common.whitening) if self._whitens else ()

    def _begin(self, samples: int) -> None:
        place = self._place
        self._has_begun = True
        self._samples = samples
        place.begin(samples)

    def _give_batch_up(self) -> None:
        """Forget the batch; what has left of it stays with the others."""
        self._forget_batch()
        self._outbox.copies.forget()
        if self._has_begun and not self.is_alone:
            self._is_spoilt = True
        else:
            self._has_begun = False
            self._outbox.begin_step()

    def _skip_rest(self) -> None:
        """Take part with no sample in what is left of the step of a batch that was given up, and apply the others'."""
        self._place.skip()
        self._subject.apply(self._skip())

    def _skip(self) -> Update:
        """Take part with no sample in the step that is on, and return what the others make of it."""
        if not self._has_begun:
            self._begin(0)
        self._contribute_all(Report(), skips=True)
        return self._collect(Report(), is_skipped=True)

    def _contribute(self, key: TensorKey, value: Tensor) -> None:
        if self._outbox.has_left(key):  # by a batch that was given up
            return
        if not self._has_begun:
            self._begin(self._subject.batch.samples or 1)
        self._outbox.add(self._place, key, value, stays=self.is_alone)

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
            if self._exchanged_layers:
                self._contribute(DOUBTS, doubts_of(self._exchanged_layers))
        for name, value in report.scalars.items():
            self._contribute(("curvature", name), torch.tensor([value]))
        if self._averages_in(self.step):
            self._contribute_averaged()
        self._contribute_aligned()

    def _contribute_gradient(self, part: Part, scale: float = 1.0) -> None:
        key = (self._kind, part.name)
        if key in self._outbox:
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
        place = self._place
        self._outbox.flush(place, waits=True)
        self._has_begun = False  # all has left, whatever becomes of it
        self._outbox.begin_step()
        place.complete(report.loss, report.evaluation, report.hyperparameters)
        result = place.collect()
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
            if (self._kind, part.name) in result.tensors
            for parameter, gradient in self._gradients_of(part, result.tensors[self._kind, part.name]).items()
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
