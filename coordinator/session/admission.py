"""Which devices a session admits."""

import math
from collections.abc import Mapping

from edgenewton.v1.fingerprint import FROZEN_OPTION, first_difference, first_option_difference, model_fingerprint
from edgenewton.v1.sketch import Sketch
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.drift import are_alike, compare
from coordinator.session.members import Joining, Member
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.settings import SessionSettings


class Admission:
    """The session's model and options, as a device brought them, and the checks against them."""

    def __init__(self, session: str, settings: SessionSettings) -> None:
        self.session = session
        self.settings = settings
        self.fingerprint: tuple[TensorSpec, ...] = ()
        self.options: Mapping[str, str] = {}
        self._model: str | None = None
        self._frozen: Sketch | None = None
        """Of the frozen weights; no record has it, so that once a session is resumed a device brings it anew."""
        self.is_recorded = False
        """Whether steps were committed with the model before the session was resumed."""

    @property
    def model(self) -> str:
        """What tells the session's model and options from others: `edgenewton.v1.fingerprint.model_fingerprint`."""
        if self._model is None:
            self._model = model_fingerprint(self.fingerprint, self.options) if self.fingerprint else ""
        return self._model

    def adopt(self, joining: Joining) -> None:
        """Make a device's model and options those of the session."""
        self.fingerprint, self.options = joining.fingerprint, dict(joining.options)
        self._model = self._frozen = None

    @property
    def is_settled(self) -> bool:
        """Whether it is certain which model the session has: most devices that have another one change nothing."""
        return self.is_recorded or bool(self.fingerprint and self.settings.model_of)

    def forget(self) -> None:
        """Have no model any more."""
        self.fingerprint, self.options = (), {}
        self._model = self._frozen = None

    def awaits_model_before(self, device: str) -> bool:
        """Whether a device has to wait for the one whose model the session is to have."""
        settings = self.settings
        return bool(settings.model_of) and not self.fingerprint and device != settings.model_of

    def admit(self, joining: Joining) -> None:
        """Take note of what a device that was admitted brings beside the model and the options."""
        self._frozen = self._frozen or joining.frozen_sketch

    def check(self, joining: Joining, members: Mapping[str, Member]) -> None:
        """Check that a device may join.

        Raises:
            RefusedError: the id is taken, no place is left, or model, options or codecs do not suit.

        """
        self.check_device(joining, members)
        self.check_model(joining)
        self.check_places(joining, members)

    def check_device(self, joining: Joining, members: Mapping[str, Member]) -> None:
        """Check what does not depend on what other devices have brought.

        Raises:
            RefusedError: the id is taken, the codec is unknown, or the model is too large or not what is expected.

        """
        who = self._cannot_join(joining)
        if not self.settings.codec_choice.numbers(joining.fingerprint) <= set(joining.codecs):
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                f"{who}: its codec is {self.settings.codec}, which the device does not know; install the same release "
                "on both",
            )
        taken = members.get(joining.device)
        if taken is not None and taken.is_connected and taken.token != joining.token:
            raise RefusedError(
                Status.ALREADY_EXISTS,
                f"{who}: a live device with this id is in it; give each device its own id",
            )
        if self.settings.aggregator != "mean" and any(spec.kind == "noised" for spec in joining.fingerprint):
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                f"{who}: it has a privacy budget, whose noise is counted in a sum, and the session's aggregator is "
                f"{self.settings.aggregator}; take the aggregator mean, or leave the budget out",
            )
        self._check_size(who, joining)
        expected = self.settings.model_fingerprint
        if expected and joining.model != expected:
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                f"{who}: its model and options have the fingerprint {joining.model}; --model-fingerprint expects "
                f"{expected}",
            )

    def check_model(self, joining: Joining) -> None:
        """Check that a device has the session's model and options.

        Raises:
            RefusedError: it has others.

        """
        difference = self.difference(joining)
        if difference:
            raise RefusedError(Status.FAILED_PRECONDITION, f"{self._cannot_join(joining)}: {difference}")

    def check_places(self, joining: Joining, members: Mapping[str, Member]) -> None:
        """Check that there is a place for a device.

        Raises:
            RefusedError: there is none.

        """
        if joining.device not in members and len(members) >= self.settings.capacity:
            reason = f"{self._cannot_join(joining)}: all its {self.settings.capacity} places are taken"
            raise RefusedError(Status.RESOURCE_EXHAUSTED, reason)

    def difference(self, joining: Joining) -> str:
        """Return a phrase that names where a device's model or options differ from the session's; empty if nowhere."""
        if not self.fingerprint:
            return ""
        # First, because an option, such as which layers are personal, often is why the tensors differ.
        difference = first_option_difference(self._options_for(joining), joining.options)
        if difference:
            return difference + (self._frozen_difference(joining) if FROZEN_OPTION in difference else "")
        difference = first_difference(self.fingerprint, joining.fingerprint)
        return f"its model differs: {difference}" if difference else ""

    def _cannot_join(self, joining: Joining) -> str:
        return f"device {joining.device!r} cannot join session {self.session!r}"

    def _options_for(self, joining: Joining) -> Mapping[str, str]:
        """Return the session's options, with a device's own digest of the frozen weights if they are the session's."""
        told = joining.frozen_sketch
        is_like = told is not None and (self._frozen is None or are_alike(self._frozen, told))
        if not is_like or FROZEN_OPTION not in self.options or FROZEN_OPTION not in joining.options:
            return self.options
        return {**self.options, FROZEN_OPTION: joining.options[FROZEN_OPTION]}

    def _frozen_difference(self, joining: Joining) -> str:
        """Return where a device's frozen weights differ most, as the end of a sentence."""
        if self._frozen is None or joining.frozen_sketch is None:
            return ""
        differing, _ = compare({"": self._frozen, joining.device: joining.frozen_sketch}, math.inf)
        return "".join(f"; its {d.group!r} differs by {d.amount:.2g}" for d in differing if d.group)

    def _check_size(self, who: str, joining: Joining) -> None:
        size = 4 * sum(spec.size for spec in joining.fingerprint)
        if size > self.settings.max_model_bytes:
            raise RefusedError(
                Status.RESOURCE_EXHAUSTED,
                f"{who}: its tensors take {size} bytes in all; at most {self.settings.max_model_bytes} are accepted",
            )
