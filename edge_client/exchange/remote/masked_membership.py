"""A place in a session with secure aggregation: contributions wait until it is settled who masks, and leave masked."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.secure_aggregation.contribution_form import NUMBERS_STREAM, Totals, key_hint, stream_of
from edgenewton.secure_aggregation.modular_integers import pack
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.framing import FramePacker, Layout, Slice, SliceKey
from torch import Tensor

from edge_client.exchange.errors import Cause, ExchangeError
from edge_client.exchange.interface import Pace, TensorKey
from edge_client.exchange.remote.assembly import AssembledStep
from edge_client.exchange.remote.masking import Masking, ReadyMasks
from edge_client.exchange.remote.membership import GrpcMembership

_FEW_BITS = 8
"""With fewer, what was rounded away of gradients is sent with the next ones; with as many, what is late harms more than
what is lost: the weights have moved, and the curvature magnifies it."""
_KEPT = "delta"
"""What is sent later as a whole if it was not in the sum; a gradient that is late is of the past."""


@dataclass
class MaskedContribution:
    """What a device contributes to a step, until that has committed: it may have to be masked more than once."""

    step: int
    samples: int
    values: dict[int, Float32Array] = field(default_factory=dict)
    """By number in the fingerprint, flat."""
    end: pb.Contribution | None = None
    loss: float = 0.0
    evaluation: Evaluation | None = None


class ErrorMemory:
    """What of a device's gradients and moves was not sent yet, by slice.

    Args:
        layout: of the slices.

    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._errors: dict[SliceKey, Float32Array] = {}
        self._pending: dict[SliceKey, tuple[str, Float32Array, Float32Array]] = {}
        """Of the step that is on: the kind, what was to be sent, and what is left if it counts."""

    def frames(
        self, contribution: MaskedContribution, ready: ReadyMasks, frame_bytes: int, news: pb.Frame
    ) -> Iterable[bytes]:
        """Yield the frames of a contribution under masks; the last one ends it, and has news in it."""
        assert contribution.end is not None
        form, masks = ready.form, ready.masks
        packer = FramePacker(contribution.step, 1, frame_bytes, masked_with=key_hint(masks.keys.public))
        clipped = np.zeros(len(self._layout.fingerprint))
        self._pending = {}
        for index, flat in contribution.values.items():
            for piece in self._layout.slices(index):
                is_fed_back = piece.spec.kind == _KEPT or (piece.spec.kind == "gradient" and form.bits < _FEW_BITS)
                values = self._to_send(piece, flat, contribution.samples, is_fed_back=is_fed_back)
                how = form.of(piece)
                encoded = how.encode(values)
                clipped[index] += encoded.clipped
                if is_fed_back and contribution.samples:
                    self._pending[piece.key] = piece.spec.kind, values, values - encoded.written
                masked = masks.mask(stream_of(piece.key), encoded.integers, how.sum_bits)
                yield from packer.add(piece, pack(masked, how.sum_bits))
        samples = contribution.samples
        loss = contribution.loss if np.isfinite(contribution.loss) else 0.0
        totals = Totals(samples, samples * loss, contribution.evaluation, clipped)
        numbers = form.numbers.encode(totals.to_vector()).integers
        contribution.end.numbers = pack(
            masks.mask(NUMBERS_STREAM, numbers, form.numbers.sum_bits), form.numbers.sum_bits
        )
        news.contribution.CopyFrom(contribution.end)
        yield packer.take(news)

    def settle(self, contribution: MaskedContribution, *, has_counted: bool) -> None:
        """Let what was not in the sum be sent with the next ones, as far as it is of use then."""
        if not contribution.samples:
            return
        if self._pending:
            for key, (kind, wanted, left) in self._pending.items():
                if has_counted:
                    self._errors[key] = left
                elif kind == _KEPT:
                    self._errors[key] = wanted
        elif not has_counted:
            for index, flat in contribution.values.items():
                for piece in self._layout.slices(index):
                    if piece.spec.kind == _KEPT:
                        self._errors[piece.key] = self._to_send(piece, flat, contribution.samples, is_fed_back=True)
        self._pending = {}

    def forget(self) -> None:
        """Forget everything: it belongs to another past."""
        self._errors, self._pending = {}, {}

    def state_dict(self) -> dict[SliceKey, Any]:
        """Return what was not sent yet."""
        return {key: {"error": torch.from_numpy(error.copy())} for key, error in self._errors.items()}

    def load_state_dict(self, states: Mapping[SliceKey, Any]) -> None:
        """Go on with what `state_dict` gave.

        Raises:
            ValueError: it is of other slices.

        """
        errors = {}
        for key, state in states.items():
            piece, error = self._layout.slice_of(key), state.get("error")
            if error is None or error.shape != (piece.length,):
                raise ValueError(f"the state of the {piece.spec} is not what was left of it under masks")
            errors[key] = error.cpu().numpy().astype(np.float32)
        self._errors, self._pending = errors, {}

    def _to_send(self, piece: Slice, flat: Float32Array, samples: int, *, is_fed_back: bool) -> Float32Array:
        values = np.float32(samples) * flat[piece.key.offset : piece.key.offset + piece.length]
        error = self._errors.get(piece.key) if is_fed_back and samples else None
        return values if error is None else values + error


class MaskedMembership(GrpcMembership):
    """See `GrpcMembership`. What a device contributes waits here for the masks of its step.

    Args:
        masking: has them.
        args: of `GrpcMembership`.

    """

    def __init__(self, masking: Masking, *args: Any) -> None:
        super().__init__(*args)
        self._masking = masking
        self._memory = ErrorMemory(masking.layout)
        self._contribution: MaskedContribution | None = None

    @property
    def least_devices(self) -> int:
        """So many: a device reveals nothing of a sum of fewer."""
        return int(self._settings.secure_aggregation.least)

    def begin(self, samples: int, *, is_repeated: bool = False) -> None:
        """Begin the next step: see `Membership.begin`."""
        self._begin_step(is_repeated=is_repeated)
        self._contribution = MaskedContribution(self.step, samples)
        # Its contribution leaves all at once, late in the step: without this a slow device would not be waited for.
        self._link.send(pb.Frame(step=self.step, samples=1).SerializeToString())

    def skip(self) -> None:
        """Skip what is left of the batch, and what was contributed before: nothing has left yet."""
        self._begun("skipping it").samples = 0

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Take one tensor: see `Membership.contribute`."""
        contribution = self._begun("contributing to it")
        index, flat = self._checked(key, value)
        contribution.values[index] = flat.copy()

    def complete(
        self,
        loss: float,
        evaluation: Evaluation | None = None,
        hyperparameters: Mapping[str, float] | None = None,
        batches: int = 1,
        pace: Pace | None = None,
    ) -> None:
        """End the contribution: see `Membership.complete`."""
        contribution = self._begun("completing it")
        contribution.end = self._end_of_contribution(math.nan, None, hyperparameters, batches, pace)
        contribution.loss, contribution.evaluation, self._loss = loss, evaluation, loss
        self._send_masked()

    def state_dict(self) -> dict[str, Any]:
        """Return what this device has still to send: see `Membership.state_dict`."""
        return self._named(self._memory.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was still to be sent: see `Membership.load_state_dict`."""
        self._memory.load_state_dict(self._keyed(state))

    def _send_masked(self) -> None:
        """Send the contribution that is complete, if there are masks for it."""
        contribution = self._contribution
        if contribution is None or contribution.end is None:
            return
        ready = self._masking.take_ready(self.step)
        if ready is None or self._link.has_committed(self.step):
            return
        self._link.begin_step(self.step)  # what left under other masks is of no use
        # Most probably the same devices mask in the next step, too: that saves it a round trip.
        following = self.step + contribution.end.batches
        ahead = pb.Frame(next_step=following, next_keys=self._masking.keys_ahead(following, ready.circle))
        frames = list(self._memory.frames(contribution, ready, self._layout.frame_bytes, ahead))
        for frame in frames[:-1]:
            self._link.send(frame)
        self._link.send(frames[-1], is_last=True)

    def _on_masks(self) -> None:
        self._send_masked()

    def _settle(self, step: int, counted: int | None) -> None:
        contribution, self._contribution = self._contribution, None
        if contribution is not None and contribution.step == step:
            has_counted = counted is None or counted > 0 or self._masking.has_revealed(step)
            self._memory.settle(contribution, has_counted=has_counted)

    def _forget_unsent(self) -> None:
        self._memory.forget()
        self._contribution = None

    def _check_complete(self, step: AssembledStep) -> None:
        if step.commit is not None and step.commit.devices:
            super()._check_complete(step)  # else nobody's contribution could be had

    def _begun(self, what: str) -> MaskedContribution:
        if self._contribution is None or self._contribution.end is not None:
            raise ExchangeError(f"device {self._place.device!r}: begin a step before {what}", Cause.INVALID)
        return self._contribution
