"""The state that a session begins with: that of the device that is furthest when they gather."""

from edgenewton.v1.sketch import Sketch

from coordinator.session.drift import are_alike
from coordinator.session.members import Joining


class Beginning:
    """Compares what devices bring with the state of the one that is furthest.

    Args:
        first_step: number of the session's first step, where untrained devices stand.

    """

    def __init__(self, first_step: int) -> None:
        self._first_step = first_step
        self._weights_digest = b""
        self._sketch: Sketch | None = None
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
        self._weights_digest, self._sketch = joining.weights_digest, joining.sketch
        self._has_past = _has_past(joining)

    def is_that_of(self, joining: Joining, step: int) -> bool:
        """Whether a device's state is that of the session, which stands before a step."""
        if self._has_past and joining.next_step is None:
            return False
        is_told = bool(joining.weights_digest and self._weights_digest)
        return self.step_of(joining) == step and (not is_told or self._has_weights_of(joining))

    def is_still(self, joining: Joining, step: int) -> bool:
        """Whether an untrained device has what all began with, and no step has been taken since."""
        is_at_start = step == self._first_step and not self._has_past
        return is_at_start and self._has_weights_of(joining)

    def _has_weights_of(self, joining: Joining) -> bool:
        """Whether the weights are those of a device, to the last bit or but for rounding."""
        return joining.weights_digest == self._weights_digest or are_alike(joining.sketch, self._sketch)


def _has_past(joining: Joining) -> bool:
    # A device that only lost its connection sends no digest; what it has is in the session already.
    return bool(joining.next_step and joining.weights_digest)
