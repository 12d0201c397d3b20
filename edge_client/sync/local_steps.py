"""Several steps on each device alone, then an exchange of what they moved the parameters by: local steps.

A round takes `every` batches. At its beginning all devices hold the same parameters, the anchor. Each takes steps of
its own from there; at the end the mean of the devices' moves takes the anchor an outer step further, and all begin the
next round from it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from edgenewton.common.options import check_number
from edgenewton.v1.forms import Form
from edgenewton.v1.stage import Stage
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.exchange import (
    Evaluation,
    Exchange,
    FormedMembership,
    InProcessExchange,
    Membership,
    NonFiniteGradientError,
    StepResult,
)
from edge_client.sync.gradients import clip_scale, nonfinite_gradient
from edge_client.sync.move_scaling import MoveScales
from edge_client.sync.moves import MoveVector, move_vectors
from edge_client.sync.outer import Outer, OuterStep
from edge_client.sync.pace import PaceMeter
from edge_client.sync.parts import parts_of
from edge_client.sync.plan import Report, Subject, SyncPlan, Update
from edge_client.sync.replica import ModelReplica
from edge_client.sync.scope import CurvatureScope, Own

LOCAL_STEPS = 10
"""Batches of a round, unless the user sets them."""


@dataclass
class _Round:
    """What a device has done since the last exchange."""

    batches: int = 0
    samples: int = 0
    loss: float = 0.0
    """Summed over the samples."""

    @property
    def mean_loss(self) -> float:
        return self.loss / self.samples if self.samples else math.nan


class LocalSteps(SyncPlan):
    """Local steps on each device, and an exchange of moves after every few batches.

    Args:
        exchange: the way to the other devices; None for one device alone.
        every: batches between two exchanges; None to let the session choose them, from what its devices measure.
        outer: what is done with the mean of the devices' moves.
        scope: whose curvature the local steps use; None for each device's own.
        clip_grad_norm: bound on the norm of a batch's gradient over all parameters.
        training_samples: how many private samples this device holds; the coordinator is told.

    Raises:
        OptionError: an option is impossible.

    """

    def __init__(
        self,
        exchange: Exchange | None = None,
        every: int | None = LOCAL_STEPS,
        *,
        outer: Outer | None = None,
        scope: CurvatureScope | None = None,
        clip_grad_norm: float | None = None,
        training_samples: int = 0,
    ) -> None:
        check_number("local_steps", every, at_least=1)
        check_number("clip_grad_norm", clip_grad_norm, above=0)
        self._exchange: Exchange = exchange if exchange is not None else InProcessExchange()
        self._chosen = every
        self._every = 1 if every is None else every
        """Batches of the round that is on."""
        self._form: Form | None = None
        """In which its moves will be written; None until a session says so, and where it does not choose."""
        self._meter = PaceMeter()
        self._evaluation: Evaluation | None = None
        """Of the anchor."""
        self._outer_options = outer if outer is not None else Outer()
        self._outer = OuterStep(self._outer_options)
        self._scope = scope if scope is not None else Own()
        self._clip_grad_norm = clip_grad_norm
        self._training_samples = training_samples
        self._membership: Membership | None = None
        self._first_step = 0
        self._round = _Round()
        self._report = Report()
        """Of the last batch."""
        self._anchor: dict[str, Tensor] = {}
        """The parameters and buffers that the round began with, by name."""
        self._has_begun = False
        """Whether the scope knows of the round that is on."""
        self._unsent: Mapping[str, Any] = {}
        """What a saved state had still to send."""

    @property
    def step(self) -> int:
        """Number of the batch that is on, or comes next."""
        return self._round_step + self._round.batches

    @property
    def options(self) -> Mapping[str, object]:
        """How often, how far, and with whose curvature."""
        outer = self._outer_options
        return {
            "local_steps": "auto" if self._chosen is None else self._chosen,
            "outer_lr": outer.outer_lr,
            "outer_momentum": outer.outer_momentum,
            **self._scope.options,
        }

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
        """No gradient ever leaves."""
        return False

    def attach(self, subject: Subject) -> None:
        """Take what is to be synchronised."""
        self._subject = subject
        self.extend()
        self.replica = ModelReplica(
            subject.model,
            is_shared=True,
            apply=self._take,
            before=lambda: self._anchor or subject.batch.buffers,
        )
        self.replica.register("round", self._shared_state, self._take_over)
        self._scope.attach(subject)

    def extend(self) -> None:
        """Take note of parameters and layers that have come since."""
        self._names: dict[Tensor, str] = {
            p: name for name, p in self._subject.model.named_parameters() if p.requires_grad
        }
        self._moves: list[MoveVector] = move_vectors(parts_of(self._names, self._subject.layers))
        self._scales = MoveScales(self._subject, self._moves, lambda: self._scope.in_common)
        if self._anchor:
            self._anchor = self._copies() | self._anchor

    def specs(self) -> list[TensorSpec]:
        """Return the moves of all parameters, the buffers, and what the curvature's scope exchanges."""
        buffers = [
            TensorSpec(name, tuple(buffer.shape), str(buffer.dtype).removeprefix("torch."), "parameter")
            for name, buffer in self._buffers().items()
        ]
        return [*(vector.spec() for vector in self._moves), *buffers, *self._scope.specs()]

    def join(self, options: Mapping[str, str]) -> None:
        """Take this device's place: see `SyncPlan.join`."""
        self._membership = self._exchange.join(
            self.specs(), options, self.replica, self._training_samples, self._stages
        )
        self._membership.load_state_dict(self._unsent)
        self._unsent = {}
        if self._chosen is None:
            self._every = self._membership.first_batches or self._every
            if isinstance(self._membership, FormedMembership):
                self._form = self._membership.first_form or self._form
        if not self._has_begun:
            self._begin_round()
        elif not self._anchor:
            self._anchor = self._copies()

    @property
    def is_in_common(self) -> bool:
        """Whether the round's first batch is on: the parameters are the anchor."""
        return not self._round.batches

    def wants_statistics(self, *, by_schedule: bool) -> bool:
        """Whether the scope uses those of the batch that is on: see `SyncPlan.wants_statistics`."""
        return self._scope.wants_batch(by_schedule=by_schedule, is_first=self._is_first)

    def on_gradient(self, parameter: Tensor) -> None:
        """Nothing leaves before the round's end."""

    def discard(self) -> None:
        """Forget the batch."""
        self._subject.batch.forget()

    def before_update(self, report: Report) -> Update:
        """Return the device's own gradients and its scope's curvature, for a step of its own."""
        if self._membership is None:
            raise RuntimeError("the optimizer has not joined: call optimizer.zero_grad() or the model before backward")
        batch = self._subject.batch
        samples = batch.samples if report.samples is None else report.samples
        bad = nonfinite_gradient(self._names)
        if report.is_skipped or bad is not None:
            self._restore_buffers()
        if bad is not None and not (report.is_skipped or self._subject.skips_nonfinite):
            batch.forget()
            raise NonFiniteGradientError(self._exchange.device, f"gradient of {bad!r}", self.step)
        is_skipped = report.is_skipped or samples == 0 or bad is not None
        count = 0 if is_skipped else samples or 1
        result = StepResult(self.step, {}, count, devices=1, loss=math.nan if is_skipped else report.loss)
        update = Update(result, is_skipped=is_skipped)
        if not is_skipped:
            scale = clip_scale(self._names, self._clip_grad_norm)
            gradients = {p: p.grad if scale == 1 else p.grad * scale for p in self._names if p.grad is not None}
            is_first = self._is_first
            update = replace(
                update,
                gradients=gradients,
                statistics=self._scope.statistics(result.step, report.loss_scale, is_first=is_first),
                scalars=report.scalars,
                refreshes=self._scope.refreshes(is_first=is_first),
            )
            self._round.loss += report.loss * count
        if not self._round.batches:
            self._evaluation = report.evaluation
        self._round.batches += 1
        self._round.samples += count
        self._report = report
        batch.forget()
        return update

    def after_update(self) -> StepResult | None:
        """Exchange, if the round is over or has gone on without this device."""
        assert self._membership is not None
        if self._round.batches < self._every and not self._membership.has_missed:
            return None
        return self._end_round()

    def average(self) -> Update | None:
        """End the round that is on, if any batch of it was taken."""
        return Update(self._end_round()) if self._round.batches else None

    def state_dict(self) -> dict[str, Any]:
        """Return where this device stands in the round, and what it has still to send."""
        state = self._shared_state() | {"round": dict(vars(self._round))}
        if self._round.batches:
            state["anchor"] = dict(self._anchor)
            state["own"] = self._scope.own_state_dict()
        state["unsent"] = self._membership.state_dict() if self._membership is not None else self._unsent
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in a round: see `SyncPlan.load_state_dict`. That of another plan has a step, and nothing to send."""
        self._load_shared(state)
        self._round = _Round(**state.get("round", {}))
        self._anchor = {name: tensor.clone() for name, tensor in state.get("anchor", {}).items()}
        self._scope.load_own_state_dict(state.get("own", {}))
        self._unsent = state.get("unsent", {}) if "round" in state else {}
        if self._membership is not None:
            self._membership.load_state_dict(self._unsent)
            self._anchor = self._anchor or self._copies()

    # ------------------------------------------------------------------ inner workings

    def _stages(self, spec: TensorSpec) -> Sequence[Stage[Any, Any]]:
        """Return what is done to a tensor before it is written."""
        return self._scales.stages(spec)

    @property
    def _round_step(self) -> int:
        return self._membership.step if self._membership is not None else self._first_step

    @property
    def _is_first(self) -> bool:
        """Whether no batch of the round has counted yet."""
        return not self._round.samples

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        """Let the forward of a batch that does not count leave nothing behind, such as a running mean of NaN."""
        buffers = dict(self._subject.model.named_buffers())
        for name, before in self._subject.batch.buffers.items():
            if name in buffers:
                buffers[name].copy_(before)

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._subject.model.named_buffers() if buffer.is_floating_point()}

    @torch.no_grad()
    def _begin_round(self) -> None:
        """Begin a round with the model as it is."""
        self._round, self._anchor = _Round(), self._copies()
        self._scope.begin_round(self._round_step)
        self._has_begun = True
        self._meter.begin_round()

    def _copies(self) -> dict[str, Tensor]:
        """Return copies of the parameters and buffers as they are, by name."""
        named = {name: p for p, name in self._names.items()} | dict(self._subject.model.named_buffers())
        return {name: tensor.detach().clone() for name, tensor in named.items()}

    @torch.no_grad()
    def _end_round(self) -> StepResult:
        """Exchange what the parameters were moved by, and take the outer step."""
        assert self._membership is not None
        place, taken, report = self._membership, self._round, self._report
        if self._form is not None and isinstance(place, FormedMembership):
            place.write_as(self._form)
        self._meter.end_batches(taken.batches)
        place.begin(taken.samples)
        before = {parameter: self._anchor[name] for parameter, name in self._names.items()}
        moved = 0.0
        for vector in self._moves:
            move = vector.gather(before)
            moved += float(move.square().sum())
            place.contribute(vector.key, move)
        for name, buffer in self._buffers().items():
            place.contribute(("parameter", name), buffer)
        self._scope.contribute(place)
        pace = self._meter.pace if self._chosen is None else None
        pace = pace and replace(pace, form=self._form)
        place.complete(taken.mean_loss, self._evaluation, report.hyperparameters, taken.batches, pace)
        self._meter.complete()
        result = place.collect()
        self._meter.arrive()
        if not result.is_healed:
            together = sum(float(mean.square().sum()) for (kind, _), mean in result.tensors.items() if kind == "delta")
            self._meter.agreement = together / moved if moved > 0 else 1.0
            self._take(result)
        return result

    @torch.no_grad()
    def _take(self, result: StepResult) -> None:
        """Take the outer step of a round, from the anchor; what this device did since is in what it has sent."""
        tensors = dict(self._subject.model.named_parameters()) | self._buffers()
        for name, tensor in self._anchor.items():
            if name in tensors:
                tensors[name].copy_(tensor)
        if result.samples:
            for vector in self._moves:
                if vector.key in result.tensors:
                    for parameter, mean in vector.scatter(result.tensors[vector.key]).items():
                        self._outer.move(self._names[parameter], parameter, mean)
            for name, buffer in self._buffers().items():
                if ("parameter", name) in result.tensors:
                    buffer.copy_(result.tensors["parameter", name])
        self._scope.receive(result)
        if self._chosen is None and result.next_batches is not None:
            self._every = result.next_batches
            self._form = result.next_form or self._form
        self._first_step = result.next_step
        self._begin_round()

    def _shared_state(self) -> dict[str, Any]:
        """Return what is equal on all devices between two rounds."""
        return {
            "step": self._round_step,
            "every": self._every,
            "form": self._form and self._form.value,
            "outer": self._outer.state_dict(),
            "scope": self._scope.state_dict(),
        }

    def _load_shared(self, state: Mapping[str, Any]) -> None:
        """Take what `_shared_state` gave; a state of another plan has none."""
        if self._membership is not None:
            self._membership.resume_at(state["step"])
        else:
            self._first_step = self.replica.next_step = state["step"]
        if self._chosen is None:
            self._every = state.get("every", 1)
            self._form = Form(state["form"]) if state.get("form") else None
        self._has_begun = "scope" in state
        self._outer.load_state_dict(state.get("outer", {}))
        self._scope.load_state_dict(state.get("scope", {}))

    def _take_over(self, state: dict[str, Any]) -> None:
        """Go on where another device began a round."""
        self._load_shared(state)
        self._scope.load_own_state_dict({})
        self._unsent = {}
        self._round, self._anchor = _Round(), self._copies()
