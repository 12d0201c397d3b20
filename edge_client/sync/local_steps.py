"""Several steps on each device alone, then an exchange of what they moved the parameters by: local steps.

A round takes `every` batches. At its beginning all devices hold the same parameters, the anchor. Each takes steps of
its own from there; at the end the mean of the devices' moves takes the anchor an outer step further, and all begin the
next round from it.

With `overlap` a device does not wait for the mean: it goes on from where it is, and takes the outer step a round later,
before it sends what it has moved since. The anchors stay the same on all devices, and each is ahead of them by its own
move (the overlapped outer step of Douillard et al. 2025, "Streaming DiLoCo", https://arxiv.org/abs/2501.18512).
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from edgenewton.common.options import check_number
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.exchange import Evaluation, Exchange, NonFiniteGradientError, StepResult
from edge_client.sync.exchanging import ExchangingPlan
from edge_client.sync.gradients import clip_scale, nonfinite_gradient
from edge_client.sync.host_copies import HostCopies
from edge_client.sync.model_tensors import averaged_in, copies, held, put
from edge_client.sync.move_scaling import MoveScales
from edge_client.sync.moves import MoveVector, move_vectors
from edge_client.sync.outer import Outer, OuterStep
from edge_client.sync.pace import PaceMeter
from edge_client.sync.parts import parts_of
from edge_client.sync.plan import Report, Subject, Update
from edge_client.sync.replica import ModelReplica
from edge_client.sync.rounds import Round, SentRound, SessionChoice, Told
from edge_client.sync.scope import CurvatureScope, Own

LOCAL_STEPS = 10
"""Batches of a round, unless the user sets them."""


class LocalSteps(ExchangingPlan):
    """Local steps on each device, and an exchange of moves after every few batches.

    Args:
        exchange: the way to the other devices; None for one device alone.
        every: batches between two exchanges; None to let the session choose them, from what its devices measure.
        overlap: take the steps of the next round while the mean of one is on its way.
        outer: what is done with the mean of the devices' moves.
        scope: whose curvature the local steps use; None for each device's own.
        clip_grad_norm: bound on the norm of a batch's gradient over all parameters.
        training_samples: how many private samples this device holds; the coordinator is told.
        personal: patterns of the names of what never leaves this device: see `personal_names`.

    Raises:
        OptionError: an option is impossible.

    """

    _kind = "delta"
    """Of the tensors that the moves are written in."""

    def __init__(
        self,
        exchange: Exchange | None = None,
        every: int | None = LOCAL_STEPS,
        *,
        overlap: bool = False,
        outer: Outer | None = None,
        scope: CurvatureScope | None = None,
        clip_grad_norm: float | None = None,
        training_samples: int = 0,
        personal: str | Collection[str] = (),
    ) -> None:
        check_number("local_steps", every, at_least=1)
        super().__init__(exchange, clip_grad_norm=clip_grad_norm, training_samples=training_samples, personal=personal)
        self._overlaps = overlap and not self._exchange.is_alone
        self._chosen = every
        self._choice = SessionChoice(every, overlap=self._overlaps)
        self._meter = PaceMeter()
        self._evaluation: Evaluation | None = None
        """Of the anchor."""
        self._outer_options = outer if outer is not None else Outer()
        self._outer = OuterStep(self._outer_options)
        self._scope = scope if scope is not None else Own()
        self._round = Round()
        self._report = Report()
        """Of the last batch."""
        self._sent: SentRound | None = None
        """The round whose result is still to come; the one that is on began after it."""
        self._anchor: dict[str, Tensor] = {}
        """The parameters and buffers after the last result, by name: what all devices have in common."""
        self._has_begun = False
        """Whether the scope knows of the round that is on."""

    @property
    def keeps_curvature(self) -> bool:  # type: ignore[override]
        """Whether the curvature is of this device's batches alone."""
        return self._scope.keeps_curvature

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
            "overlap": self._overlaps,
            "outer_lr": outer.outer_lr,
            "outer_momentum": outer.outer_momentum,
            **self._scope.options,
        }

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
            staying=lambda: self._tensors.staying,
            frozen=lambda: self._tensors.frozen_weights,
        )
        self.replica.register("round", self._shared_state, self._take_over)
        self._scope.attach(replace(subject, has_personal=bool(self.personal)))

    def extend(self) -> None:
        """Take note of parameters and layers that have come since."""
        self._take_tensors()
        self._moves: list[MoveVector] = move_vectors(parts_of(self._tensors.names, self._subject.layers), self._kind)
        self._scales = MoveScales(self._subject, self._moves, lambda: self._scope.in_common)
        if self._anchor:
            self._anchor = copies(self._tensors.all) | self._anchor

    def specs(self) -> list[TensorSpec]:
        """Return the moves of all parameters, the anchor and the buffers, and what the curvature's scope exchanges."""
        averaged = [*self._tensors.buffer_specs(), *self._tensors.weight_specs()]
        return [*(vector.spec() for vector in self._moves), *averaged, *self._scope.specs()]

    def join(self, options: Mapping[str, str]) -> None:
        """Take this device's place: see `SyncPlan.join`."""
        place = self._take_place(options, self._scales.stages)
        # With overlap it knows better what it goes on from: the coordinator knows the round after that.
        if not (self._overlaps and self._has_begun):
            self._choice.begin(place)
        if not self._has_begun:
            self._begin_round()
        elif not self._anchor:
            self._anchor = copies(self._tensors.all)
        self._send_again()

    @property
    def is_in_common(self) -> bool:
        """Whether the round's first batch is on."""
        return not self._round.batches

    @contextmanager
    def in_common(self) -> Iterator[None]:
        """Let the model be the anchor for a while."""
        with held(self._tensors.all, self._anchor):
            yield

    def wants_statistics(self, *, by_schedule: bool) -> bool:
        """Whether the scope uses those of the batch that is on: see `SyncPlan.wants_statistics`."""
        return self._scope.wants_batch(by_schedule=by_schedule, is_first=self._round.is_first)

    def on_gradient(self, parameter: Tensor) -> None:
        """Nothing leaves before the round's end."""

    def discard(self) -> None:
        """Forget the batch."""
        self._subject.batch.forget()

    def before_update(self, report: Report) -> Update:
        """Return the device's own gradients and its scope's curvature, for a step of its own."""
        _ = self._place  # without one there is no round to take part in
        batch = self._subject.batch
        samples = batch.samples if report.samples is None else report.samples
        self._tensors.check_still()
        bad = nonfinite_gradient(self._tensors.trained)
        if report.is_skipped or bad is not None:
            # The forward of a batch that does not count leaves nothing behind, such as a running mean of NaN.
            put(dict(self._subject.model.named_buffers()), batch.buffers)
        if bad is not None and not (report.is_skipped or self._subject.skips_nonfinite):
            batch.forget()
            raise NonFiniteGradientError(self._exchange.device, f"gradient of {bad!r}", self.step)
        is_skipped = report.is_skipped or samples == 0 or bad is not None
        count = 0 if is_skipped else samples or 1
        result = StepResult(self.step, {}, count, 1, math.nan if is_skipped else report.loss, is_own=True)
        update = Update(result, is_skipped=is_skipped)
        if not is_skipped:
            trained = self._tensors.trained
            scale = clip_scale(trained, self._clip_grad_norm)
            gradients = {p: p.grad if scale == 1 else p.grad * scale for p in trained if p.grad is not None}
            is_first = self._round.is_first
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
        length = self._choice.batches(is_behind=self._sent is not None)
        if self._round.batches < length and not self._place.has_committed(self._round_step):
            return None
        return self._end_round()

    def average(self) -> Update | None:
        """End the round that is on, if any batch of it was taken, and take the results that are still to come."""
        result = self._end_round() if self._round.batches else None
        if self._sent is not None:
            result = self._collect(self._sent)
        return None if result is None else Update(result)

    def state_dict(self) -> dict[str, Any]:
        """Return where this device stands in the round, and what it has still to send."""
        state = self._shared_state() | {"round": dict(vars(self._round)), "own": self._scope.own_state_dict()}
        if self._round.batches or self._sent is not None:
            state["anchor"] = dict(self._anchor)
        if self._sent is not None:
            return state | {"sent": self._sent.state_dict(), "unsent": self._sent.unsent}
        return state | {"unsent": self._still_to_send()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in a round: see `SyncPlan.load_state_dict`. That of another plan has a step, and nothing to send."""
        self._load_shared(state)
        self._round = Round(**state.get("round", {}))
        self._sent = SentRound.from_state(state["sent"]) if "sent" in state else None
        self._anchor = {name: tensor.clone() for name, tensor in state.get("anchor", {}).items()}
        self._scope.load_own_state_dict(state.get("own", {}))
        self._unsent = state.get("unsent", {}) if "round" in state else {}
        if self._sent is not None:
            self._sent.unsent = self._unsent
        if self._membership is not None:
            self._membership.load_state_dict(self._unsent)
            self._anchor = self._anchor or copies(self._tensors.all)
            self._send_again()

    # ------------------------------------------------------------------ inner workings

    @property
    def _round_step(self) -> int:
        return self._anchor_step + (0 if self._sent is None else self._sent.batches)

    @torch.no_grad()
    def _begin_round(self) -> None:
        """Begin a round with the model as it is."""
        self._round, self._sent, self._anchor = Round(), None, copies(self._tensors.all)
        self._scope.begin_round(self._anchor_step)
        self._has_begun = True
        self._meter.begin_round()

    def _end_round(self) -> StepResult | None:
        """Take the result that is still to come, send the round that is on, and take its result unless with overlap."""
        place, taken, result = self._place, self._round, None
        self._meter.end_batches(taken.batches)
        if self._sent is not None:
            result = self._collect_behind(self._sent)
            if result.is_healed:
                return result
        is_missed = place.has_committed(place.step)
        sent = self._send(taken)
        if not self._overlaps or is_missed:
            return self._collect(sent)
        self._sent, self._round = sent, Round()
        return result

    @torch.no_grad()
    def _send(self, taken: Round) -> SentRound:
        """Send a round: what the parameters were moved by since the anchor, the buffers, and what the scope tells."""
        told = Told({("parameter", name): buffer for name, buffer in copies(self._tensors.buffers).items()})
        if self._aligns:
            told |= {("weight", name): self._anchor[name] for name in self._tensors.parameters}
        self._scope.contribute(told)
        loss, hyperparameters = taken.mean_loss, self._report.hyperparameters
        parameters = copies(self._tensors.parameters) if self._overlaps else {}
        sent = SentRound(taken.batches, taken.samples, loss, hyperparameters, told, parameters)
        self._hand_over(sent, self._evaluation)
        return sent

    def _send_again(self) -> None:
        """Send the round whose result a saved state waited for, by the same bytes; what has arrived counts once."""
        if self._sent is not None:
            with held(self._tensors.parameters, self._sent.parameters):
                self._hand_over(self._sent, is_repeated=True)

    @torch.no_grad()
    def _hand_over(self, sent: SentRound, evaluation: Evaluation | None = None, *, is_repeated: bool = False) -> None:
        """Give the exchange a round, with the parameters as they are."""
        place = self._place
        sent.unsent = place.state_dict() if self._overlaps else {}
        sent.moved = 0.0
        self._choice.tell_form(place)
        place.begin(sent.samples, is_repeated=is_repeated)
        before = {parameter: self._anchor[name] for parameter, name in self._tensors.names.items()}
        on_the_way = HostCopies()

        def contribute(*, waits: bool = False) -> None:
            for key, value in on_the_way.arrived(waits=waits):
                if key[0] == "delta":
                    sent.moved += float(value.square().sum())
                place.contribute(key, value)

        for vector in self._moves:
            on_the_way.begin(vector.key, vector.gather(before))
            contribute()  # what has arrived takes no more memory
        for key, value in sent.told.items():
            on_the_way.begin(key, value)
        contribute(waits=True)
        pace = None
        if self._chosen is None and self._meter.pace is not None:
            pace = replace(self._meter.pace, form=self._choice.form)
        place.complete(sent.loss, evaluation, sent.hyperparameters, sent.batches, pace)
        self._meter.complete()

    def _collect(self, sent: SentRound, *, catches_up: bool = True) -> StepResult:
        """Wait for the result of a round, and begin the next one from it."""
        result = self._place.collect(catches_up=catches_up)
        self._meter.arrive()
        if not result.is_healed:
            self._meter.agreement = sent.agreement_with(result.tensors)
            self._take(result)
        return result

    @torch.no_grad()
    def _collect_behind(self, sent: SentRound) -> StepResult:
        """Do so while a round is on: what the device has moved since it sent stays, and so do its own buffers."""
        moves = {name: parameter - sent.parameters[name] for name, parameter in self._tensors.parameters.items()}
        buffers = copies(self._tensors.buffers)
        # The round that is on is to be sent in its step, even if that is over.
        result = self._collect(sent, catches_up=False)
        if not result.is_healed:
            for name, parameter in self._tensors.parameters.items():
                parameter.add_(moves[name])
            put(self._tensors.buffers, buffers)
        return result

    @torch.no_grad()
    def _take(self, result: StepResult) -> None:
        """Take the outer step of a round, from the anchor; what this device did since is in what it has sent."""
        put(dict(self._subject.model.named_parameters()) | self._tensors.buffers, self._anchor)
        put(self._tensors.buffers, averaged_in(result))
        put(self._tensors.parameters, averaged_in(result, "weight"))
        if result.samples:
            for vector in self._moves:
                if vector.key in result.tensors:
                    for parameter, mean in vector.scatter(self._move_of(result.tensors[vector.key])).items():
                        self._outer.move(self._tensors.names[parameter], parameter, mean)
            self._subject.average(result.batches)
        self._aligns = result.aligns_next
        self._scope.receive(result)
        self._choice.take(result)
        self._first_step = result.next_step
        self._begin_round()

    def _move_of(self, mean: Tensor) -> Tensor:
        """Return the move that an exchange's mean stands for."""
        return mean

    def _shared_state(self) -> dict[str, Any]:
        """Return what is equal on all devices between two rounds."""
        return {
            "step": self._anchor_step,
            **self._choice.state_dict(),
            "outer": self._outer.state_dict(),
            "scope": self._scope.state_dict(),
            "aligns": self._aligns,
        }

    def _load_shared(self, state: Mapping[str, Any]) -> None:
        """Take what `_shared_state` gave; a state of another plan has none."""
        self._resume_at(state["step"])
        self._choice.load_state_dict(state)
        self._aligns = state.get("aligns", False)
        self._has_begun = "scope" in state
        self._outer.load_state_dict(state.get("outer", {}))
        self._scope.load_state_dict(state.get("scope", {}))

    def _take_over(self, state: dict[str, Any]) -> None:
        """Go on where another device began a round."""
        self._load_shared(state)
        self._scope.load_own_state_dict({})
        self._unsent = {}
        self._round, self._sent, self._anchor = Round(), None, copies(self._tensors.all)
