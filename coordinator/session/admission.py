"""Which devices a session admits."""

import math
from collections.abc import Mapping

from edgenewton.v1.fingerprint import first_difference, first_option_difference
from edgenewton.v1.sketch import Sketch
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.drift import are_alike, compare
from coordinator.session.members import Joining, Member
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.settings import SessionSettings

_FROZEN = "frozen_weights"
"""The option that digests them: to the last bit, which is more than machines of different kinds agree in."""


class Admission:
    """The session's model and options, as its first device brought them, and the checks against them."""

    def __init__(self, session: str, settings: SessionSettings) -> None:
        self.session = session
        self.settings = settings
        self.fingerprint: tuple[TensorSpec, ...] = ()
        self.options: Mapping[str, str] = {}
        self._frozen: Sketch | None = None
        """Of the frozen weights; no record has it, so that once a session is resumed a device brings it anew."""

    def adopt(self, joining: Joining) -> None:
        """Make a device's model and options those of the session."""
        self.fingerprint, self.options = joining.fingerprint, dict(joining.options)

    def admit(self, joining: Joining) -> None:
        """Take note of what a device that was admitted brings beside the model and the options."""
        self._frozen = self._frozen or joining.frozen_sketch

    def check(self, joining: Joining, members: Mapping[str, Member]) -> None:
        """Check that a device may join.

        Raises:
            RefusedError: the id is taken, no place is left, or model, options or codecs do not suit.

        """
        who = f"device {joining.device!r} cannot join session {self.session!r}"
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
        self._check_size(who, joining)
        if self.fingerprint:
            # First, because an option, such as which layers are personal, often is why the tensors differ.
            difference = first_option_difference(self._options_for(joining), joining.options)
            if difference:
                frozen = self._frozen_difference(joining) if _FROZEN in difference else ""
                raise RefusedError(Status.FAILED_PRECONDITION, f"{who}: {difference}{frozen}")
            difference = first_difference(self.fingerprint, joining.fingerprint)
            if difference:
                raise RefusedError(Status.FAILED_PRECONDITION, f"{who}: its model differs: {difference}")
        if taken is None and len(members) >= self.settings.capacity:
            raise RefusedError(Status.RESOURCE_EXHAUSTED, f"{who}: all its {self.settings.capacity} places are taken")

    def _options_for(self, joining: Joining) -> Mapping[str, str]:
        """Return the session's options, with a device's own digest of the frozen weights if they are the session's."""
        told = joining.frozen_sketch
        is_like = told is not None and (self._frozen is None or are_alike(self._frozen, told))
        if not is_like or _FROZEN not in self.options or _FROZEN not in joining.options:
            return self.options
        return {**self.options, _FROZEN: joining.options[_FROZEN]}

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
