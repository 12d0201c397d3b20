"""Which devices a session admits."""

from collections.abc import Mapping

from edgenewton.v1.fingerprint import first_difference, first_option_difference
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.members import Joining, Member
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.settings import SessionSettings


class Admission:
    """The session's model and options, as its first device brought them, and the checks against them."""

    def __init__(self, session: str, settings: SessionSettings) -> None:
        self.session = session
        self.settings = settings
        self.fingerprint: tuple[TensorSpec, ...] = ()
        self.options: Mapping[str, str] = {}

    def adopt(self, joining: Joining) -> None:
        """Make a device's model and options those of the session."""
        self.fingerprint, self.options = joining.fingerprint, dict(joining.options)

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
            difference = first_option_difference(self.options, joining.options)
            if difference:
                raise RefusedError(Status.FAILED_PRECONDITION, f"{who}: {difference}")
            difference = first_difference(self.fingerprint, joining.fingerprint)
            if difference:
                raise RefusedError(Status.FAILED_PRECONDITION, f"{who}: its model differs: {difference}")
        if taken is None and len(members) >= self.settings.capacity:
            raise RefusedError(Status.RESOURCE_EXHAUSTED, f"{who}: all its {self.settings.capacity} places are taken")

    def _check_size(self, who: str, joining: Joining) -> None:
        size = 4 * sum(spec.size for spec in joining.fingerprint)
        if size > self.settings.max_model_bytes:
            raise RefusedError(
                Status.RESOURCE_EXHAUSTED,
                f"{who}: its tensors take {size} bytes in all; at most {self.settings.max_model_bytes} are accepted",
            )
