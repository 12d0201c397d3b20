"""What all plans have in common that tell other devices something: their place in an exchange, and its options."""

from collections.abc import Collection, Mapping
from typing import Any

from edgenewton.common.options import check_number
from torch import Tensor

from edge_client.exchange import Exchange, InProcessExchange, Membership
from edge_client.exchange.interface import Stages
from edge_client.sync.model_tensors import ModelTensors
from edge_client.sync.personal import patterns_of
from edge_client.sync.plan import Subject, SyncPlan


class ExchangingPlan(SyncPlan):
    """A plan with a place in an exchange.

    Args:
        exchange: the way to the other devices; None for one device alone.
        clip_grad_norm: bound on the norm of this device's gradient over all parameters.
        training_samples: how many private samples this device holds; the coordinator is told.
        personal: patterns of the names of what never leaves this device: see `personal_names`.

    Raises:
        OptionError: `clip_grad_norm` is impossible.

    """

    _subject: Subject
    _tensors: ModelTensors

    def __init__(
        self,
        exchange: Exchange | None,
        *,
        clip_grad_norm: float | None,
        training_samples: int,
        personal: str | Collection[str],
    ) -> None:
        check_number("clip_grad_norm", clip_grad_norm, above=0)
        self._exchange: Exchange = exchange if exchange is not None else InProcessExchange()
        self._clip_grad_norm = clip_grad_norm
        self._training_samples = training_samples
        self._patterns = patterns_of(personal)
        self._membership: Membership | None = None
        self._first_step = 0
        self._unsent: Mapping[str, Any] = {}
        """What a saved state had still to send."""
        self._aligns = False
        """Whether parameters are averaged in the exchange that is on, because the devices round differently."""

    @property
    def is_joined(self) -> bool:
        """Whether this device has its place."""
        return self._membership is not None

    @property
    def is_alone(self) -> bool:
        """Whether there are no other devices."""
        return self._exchange.is_alone

    @property
    def _place(self) -> Membership:
        """The place of this device.

        Raises:
            RuntimeError: it has none yet.

        """
        if self._membership is None:
            raise RuntimeError("the optimizer has not joined: call optimizer.zero_grad() or the model before backward")
        return self._membership

    @property
    def _anchor_step(self) -> int:
        """Number of the step that the exchange is at, or begins with."""
        return self._membership.step if self._membership is not None else self._first_step

    def leave(self, reason: str) -> None:
        """Give the place back, and close the exchange."""
        if self.is_joined and not self.is_alone:
            self._exchange.close(reason)

    def _take_tensors(self, known: Collection[Tensor] = ()) -> None:
        """Take note of what of the model is exchanged."""
        self._tensors = ModelTensors(self._subject.model, self._subject.layers, self._patterns, known)
        self.personal = self._tensors.personal

    def _take_place(self, options: Mapping[str, str], stages: Stages) -> Membership:
        """Join, and go on with what a saved state had still to send."""
        self._tensors.settle()
        self.replica.epsilon_of = lambda: self.epsilon
        options = {**options, **self._tensors.options}
        place = self._exchange.join(self.specs(), options, self.replica, self._training_samples, stages)
        self._membership = place
        place.load_state_dict(self._unsent)
        self._unsent = {}
        return place

    def _resume_at(self, step: int) -> None:
        """Let the step be the next one, unless a coordinator has set it."""
        if self._membership is not None:
            self._membership.resume_at(step)
        else:
            self._first_step = self.replica.next_step = step

    def _still_to_send(self) -> Mapping[str, Any]:
        """Return what `_take_place`, or `load_state_dict` of the place, takes to send it."""
        return self._membership.state_dict() if self._membership is not None else self._unsent
