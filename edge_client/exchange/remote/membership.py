"""A device's place in a session of a coordinator: what the device's own thread does; `Link` does the rest."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.common.failpoints import failpoint
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import Float32Array, form_from_proto, form_to_proto
from edgenewton.v1.evaluation import evaluation_to_proto
from edgenewton.v1.forms import Form
from edgenewton.v1.framing import FramePacker, Layout, SliceKey, SliceWriter, check_values
from edgenewton.v1.sketch_message import sketch_to_proto
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.exchange.errors import Cause, ExchangeError, NonFiniteGradientError
from edge_client.exchange.interface import Pace, Replica, StepResult, TensorKey, Traffic
from edge_client.exchange.remote.assembly import AssembledStep
from edge_client.exchange.remote.device_stages import DeviceStages
from edge_client.exchange.remote.events import Committed, Healed, Lost, MasksReady, StateWanted
from edge_client.exchange.remote.link import Link
from edge_client.exchange.remote.sent_slices import SentSlices

log = logging.getLogger(__name__)

_MARGIN_S = 10.0
"""The coordinator's own deadlines come first; ours only end the wait for a coordinator that hangs."""


@dataclass(frozen=True)
class Place:
    """Which place it is."""

    address: str
    session: str
    device: str


class GrpcMembership:
    """A place that a coordinator has given; `GradientExchange.join` makes it.

    Args:
        place: which one.
        link: the stream.
        layout: slices of the session's tensors.
        stages: what is done to tensors before they are written.
        reply: with what the coordinator gave it.
        replica: this device's state.
        patience_s: seconds in which a lost coordinator must be found again.

    """

    def __init__(
        self,
        place: Place,
        link: Link,
        layout: Layout,
        stages: DeviceStages,
        reply: pb.JoinReply,
        replica: Replica,
        patience_s: float,
    ) -> None:
        self.step = reply.first_step
        # A state that is loaded first says it itself.
        is_told = reply.snapshot == pb.SNAPSHOT_ACTION_NONE
        self.first_batches = reply.batches or None if is_told else None
        self.first_form = form_from_proto(reply.form) if is_told else None
        self._place = place
        self._link = link
        self._layout = layout
        self._stages = stages
        self._settings = reply.settings
        self._replica = replica
        self._patience_s = patience_s
        self._specs = layout.fingerprint
        self._index: dict[TensorKey, int] = {(s.kind, s.name): index for index, s in enumerate(self._specs)}
        self._writer = SliceWriter(layout, stages.policy)
        self._packer: FramePacker | None = None
        self._contributed: set[int] = set()
        self._is_repeated = False
        self._sent = SentSlices(self._writer)
        self._loss = math.nan

    @property
    def traffic(self) -> Traffic:
        """Bytes sent and received so far."""
        return self._link.traffic

    @property
    def least_devices(self) -> int:
        """So many devices' contributions are in the mean of a step at least."""
        return int(self._settings.quorum)

    def load_state(self) -> None:
        """Wait for the state that the coordinator said to load, and load it.

        Raises:
            ExchangeError: it did not come in time, or the place was lost.

        """
        settings = self._settings
        wait_s = settings.join_deadline_s + settings.rejoin_deadline_s + self._patience_s + _MARGIN_S
        match self._link.wait(self.step, wait_s):
            case Healed() as healed:
                self._take_over(healed)
            case Lost(error):
                raise self._link.explain(error)
            case _:
                raise ExchangeError(
                    f"device {self._place.device!r}: the state of session {self._place.session!r} did not arrive "
                    f"within {wait_s:g} s",
                    Cause.TIMEOUT,
                )

    def write_as(self, form: Form) -> None:
        """Write moves in another form: see `FormedMembership.write_as`."""
        self._writer.write_as(form)

    def begin(self, samples: int, *, is_repeated: bool = False) -> None:
        """Begin the next step: see `Membership.begin`."""
        self._begin_step(is_repeated=is_repeated)
        self._packer = FramePacker(self.step, samples, self._layout.frame_bytes, is_skipped=not samples)
        self._sent = SentSlices(self._writer)

    def skip(self) -> None:
        """Skip what is left of the batch: see `Membership.skip`."""
        if self._packer is None:
            raise ExchangeError(f"device {self._place.device!r}: begin a step before skipping it", Cause.INVALID)
        for frame in self._packer.skip():
            self._link.send(frame)

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Send one tensor: see `Membership.contribute`."""
        if self._packer is None:
            raise ExchangeError(f"device {self._place.device!r}: begin a step before contributing to it", Cause.INVALID)
        index, flat = self._checked(key, value)
        # The step went on without this device; of a repeated one the commit says whether it did.
        is_late = self.has_committed(self.step) and not self._is_repeated
        for piece in self._layout.slices(index):
            values = flat[piece.key.offset : piece.key.offset + piece.length]
            if is_late:
                self._sent.keep(piece, values, self.step)
                continue
            data = self._sent.encode(piece, values, self.step, is_skipped=self._packer.is_skipped)
            for frame in self._packer.add(piece, data):
                self._link.send(frame)

    def complete(
        self,
        loss: float,
        evaluation: Evaluation | None = None,
        hyperparameters: Mapping[str, float] | None = None,
        batches: int = 1,
        pace: Pace | None = None,
    ) -> None:
        """End the contribution: see `Membership.complete`."""
        if self._packer is None:
            raise ExchangeError(f"device {self._place.device!r}: begin a step before completing it", Cause.INVALID)
        contribution = self._end_of_contribution(loss, evaluation, hyperparameters, batches, pace)
        self._link.send(self._packer.take(pb.Frame(contribution=contribution)), is_last=True)
        self._packer, self._loss = None, loss

    def has_committed(self, step: int) -> bool:
        """Whether a step went on, with or without this device."""
        return self._link.has_committed(step)

    def collect(self, *, catches_up: bool = True) -> StepResult:
        """Wait for the commit: see `Membership.collect`."""
        step = self._wait_for_step()
        if step is None:
            return StepResult(self.step - 1, {}, samples=0, devices=0, loss=self._loss, is_healed=True)
        self._check_complete(step)
        result = self._result(step)
        # Whoever fell behind applies at once what it missed, but for the last step: the caller applies that.
        while catches_up and (later := self._link.take_step(self.step)) is not None:
            self._replica.apply(result)
            result = self._result(later)
        failpoint("before-apply", result.step)
        return result

    def resume_at(self, step: int) -> None:
        """Nothing: the coordinator has set the step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what this device has still to send: see `Membership.state_dict`."""
        return self._named(self._writer.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was still to be sent: see `Membership.load_state_dict`."""
        self._writer.load_state_dict({key: _from_saved(remembered) for key, remembered in self._keyed(state).items()})

    def leave(self, failure: str, ended: str = "") -> None:
        """Give the place back; a coordinator that is gone is left alone."""
        try:
            if self._link.leave(failure, ended):
                self._link.upload_now(self.step, self._replica.dump())
                self._link.leave(failure, ended)
        except (grpc.RpcError, TimeoutError) as error:
            log.debug("device %r could not say goodbye: %s", self._place.device, error)

    def cancel(self) -> None:
        """End the stream; call it on the loop of the connection."""
        self._link.cancel()

    # ------------------------------------------------------------------ waiting

    def _wait_for_step(self) -> AssembledStep | None:
        """Return the step that is on once it has committed; None if this device healed instead."""
        settings = self._settings
        # The first step also waits for the other devices to join.
        wait_s = (
            settings.step_deadline_s
            + settings.join_deadline_s
            + settings.rejoin_deadline_s
            + self._patience_s
            + _MARGIN_S
        )
        deadline = time.monotonic() + wait_s
        while (event := self._link.wait(self.step, deadline - time.monotonic())) is not None:
            match event:
                case Committed(step):
                    return step
                case Lost(error):
                    raise self._link.explain(error)
                case Healed(data=data):
                    if data:
                        self._take_over(event)
                        return None
                case StateWanted():
                    self._hand_state_in()
                case MasksReady():
                    self._on_masks()
        raise ExchangeError(
            f"device {self._place.device!r}, step {self.step}: the coordinator at {self._place.address} neither "
            f"committed nor ended the step within {wait_s:g} s",
            Cause.TIMEOUT,
        )

    def _take_over(self, healed: Healed) -> None:
        """Take over the state of another device, if there is one, and apply the steps that came since."""
        if not healed.data:
            return  # this device's own state has become that of the session
        self._replica.load(healed.data)
        self._forget_unsent()
        self.step = healed.step
        log.info("device %r goes on at step %d with the state of another device", self._place.device, healed.step)
        while (later := self._link.take_step(self.step)) is not None:
            self._replica.apply(self._result(later))

    def _hand_state_in(self) -> None:
        """Give this device's state away: somebody needs it. Between two steps it is what all share."""
        self._link.upload(self.step, self._replica.dump())

    # ------------------------------------------------------------------ what masks make otherwise

    def _on_masks(self) -> None:
        """Take note that it is settled who masks in the step that is on."""

    def _settle(self, step: int, counted: int | None) -> None:
        """Take note of what of a step's contribution counted: so many slices, or all."""
        self._sent.settle(step, counted)

    def _forget_unsent(self) -> None:
        """Forget what was not sent: the errors that the old state remembers belong to another past."""
        self._writer = SliceWriter(self._layout, self._stages.policy)
        self._sent = SentSlices(self._writer)
        self._packer = None

    # ------------------------------------------------------------------ inner workings

    def _begin_step(self, *, is_repeated: bool) -> None:
        failpoint("after-apply", self.step - 1)
        if self._link.take_wish():
            self._hand_state_in()
        self._contributed = set()
        self._is_repeated = is_repeated
        self._link.begin_step(self.step)

    def _checked(self, key: TensorKey, value: Tensor) -> tuple[int, Float32Array]:
        """Return a tensor's number and its elements, all of which are checked before any of them leaves."""
        if self._link.lost is not None:
            raise self._link.explain(self._link.lost.error)
        index = self._index[key]
        flat = _to_numpy(value)
        self._check_finite(self._specs[index], flat)
        self._contributed.add(index)
        return index, flat

    def _end_of_contribution(
        self,
        loss: float,
        evaluation: Evaluation | None,
        hyperparameters: Mapping[str, float] | None,
        batches: int,
        pace: Pace | None,
    ) -> pb.Contribution:
        return pb.Contribution(
            loss=loss,
            evaluation=evaluation_to_proto(evaluation),
            sketch=self._sketch_if_due(batches),
            hyperparameters=hyperparameters,
            batches=batches,
            pace=None if pace is None else self._to_proto(pace),
            epsilon=self._replica.epsilon,
        )

    def _named(self, states: Mapping[SliceKey, Any]) -> dict[str, Any]:
        """Return what is remembered of slices by their names, as it is saved."""
        return {_slice_name(self._specs[key.tensor], key): _to_saved(state) for key, state in states.items()}

    def _keyed(self, state: Mapping[str, Any]) -> dict[SliceKey, Any]:
        """Return what `_named` gave, by slice.

        Raises:
            ValueError: the model lacks one of them.

        """
        keys = {
            _slice_name(spec, piece.key): piece.key
            for index, spec in enumerate(self._specs)
            for piece in self._layout.slices(index)
        }
        unknown = state.keys() - keys.keys()
        if unknown:
            raise ValueError(f"the state has something to send of {min(unknown)}, which the model lacks")
        return {keys[name]: remembered for name, remembered in state.items()}

    def _result(self, step: AssembledStep) -> StepResult:
        """Return a committed step as tensors, and count it as taken."""
        commit = step.commit or pb.Commit()
        self._settle(step.step, commit.counted_slices.get(self._place.device))
        tensors = {}
        for index, values in step.tensors.items():
            spec = self._specs[index]
            tensors[spec.kind, spec.name] = _to_tensor(self._stages.undo(spec, values, step.step), spec)
        result = StepResult(
            step.step,
            tensors,
            commit.samples,
            commit.devices,
            commit.loss,
            commit.batches or 1,
            commit.cadence.batches or None,
            form_from_proto(commit.cadence.form),
            commit.HasField("alignment"),
            left_out=tuple(commit.left_out),
        )
        self.step = result.next_step
        return result

    def _check_complete(self, step: AssembledStep) -> None:
        missing = self._contributed - step.tensors.keys()
        if missing:
            raise ExchangeError(
                f"device {self._place.device!r}, step {self.step}: the step was committed without the "
                f"{self._specs[min(missing)]}",
                Cause.INVALID,
            )

    def _to_proto(self, pace: Pace) -> pb.Pace:
        form = form_to_proto(pace.form)
        return pb.Pace(**(vars(pace) | {"form": form, "round_trip_s": self._link.round_trip.seconds}))

    def _sketch_if_due(self, batches: int) -> pb.Sketch | None:
        every = self._settings.digest_every
        is_due = every and -self.step % every < batches
        return sketch_to_proto(self._replica.sketch(self.step)) if is_due and self._replica.is_shared else None

    def _check_finite(self, spec: TensorSpec, flat: Float32Array) -> None:
        try:
            check_values(spec, flat)
        except ValueError:
            raise NonFiniteGradientError(self._place.device, str(spec), self.step) from None


def _slice_name(spec: TensorSpec, key: SliceKey) -> str:
    return f"{spec.kind} of {spec.name} from {key.offset}"


def _to_saved(state: Any) -> Any:
    """Return what a stage remembers with tensors in place of arrays, as torch saves them safely."""
    if isinstance(state, Mapping):
        return {name: _to_saved(value) for name, value in state.items()}
    return torch.from_numpy(state.copy()) if isinstance(state, np.ndarray) else state


def _from_saved(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {name: _from_saved(value) for name, value in state.items()}
    return state.cpu().numpy() if isinstance(state, Tensor) else state


def _to_numpy(value: Tensor) -> Float32Array:
    return value.detach().to(device="cpu", dtype=torch.float32).contiguous().view(-1).numpy()


def _to_tensor(values: Float32Array, spec: TensorSpec) -> Tensor:
    # Whole small tensors are read-only views of the frame that they came in; means are the caller's own.
    own = values if values.flags.writeable else values.copy()
    return torch.from_numpy(own).view(spec.shape).to(getattr(torch, spec.dtype))
