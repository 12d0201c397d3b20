"""The state that a session begins with: that of the device that is furthest when they gather."""

from coordinator.session.members import Joining


class Beginning:
    """Compares what devices bring with the state of the one that is furthest.

    Args:
        first_step: number of the session's first step, where untrained devices stand.

    """

    def __init__(self, first_step: int) -> None:
        self._first_step = first_step
        self._weights_digest = b""
        self._has_past = False
        """Whether the state has optimizer and curvature of steps before."""

    def step_of(self, joining: Joining) -> int:
        """Return the step before which a device stands."""
        return self._first_step if joining.next_step is None else joining.next_step

    def is_behind(self, joining: Joining, step: int) -> bool:
        """Whether a device is further than the session, which stands before a step."""
        return (self.step_of(joining), _has_past(joining)) > (step, self._has_past)

    def take(self, joining: Joining) -> None:
        """Make a device's state that of the session."""
        self._weights_digest, self._has_past = joining.weights_digest, _has_past(joining)

    def is_that_of(self, joining: Joining, step: int) -> bool:
        """Whether a device's state is that of the session, which stands before a step."""
        if self._has_past and joining.next_step is None:
            return False
        digests = {joining.weights_digest, self._weights_digest} - {b""}
        return self.step_of(joining) == step and len(digests) < 2

    def is_still(self, joining: Joining, step: int) -> bool:
        """Whether an untrained device has what all began with, and no step has been taken since."""
        is_at_start = step == self._first_step and not self._has_past
        return is_at_start and joining.weights_digest == self._weights_digest


def _has_past(joining: Joining) -> bool:
    # A device that only lost its connection sends no digest; what it has is in the session already.
    return bool(joining.next_step and joining.weights_digest)
