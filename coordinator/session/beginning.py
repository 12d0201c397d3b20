"""The state that a session begins with: that of the device that is furthest when they gather.

Of those that are equally far it is the weights that most have, and else those of the first.
"""

from collections.abc import Iterable

from edgenewton.v1.sketch import Sketch

from coordinator.session.drift import are_alike
from coordinator.session.members import Joining, Member, Standing


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
        return self.step_of(joining) == step and self._are_those_of(joining)

    def loses_to(self, joining: Joining, members: Iterable[Member]) -> bool:
        """Whether a device brings other weights of the same step, which more have brought than have the session's."""
        if self._are_those_of(joining):
            return False
        theirs, ours = 1, 0
        for member in members:
            if member.device == joining.device:
                continue
            # What it brought, whatever it was given since: who was first has given its own to everybody.
            brought = member.joining
            if self.step_of(brought) == self.step_of(joining) and have_same_weights(brought, joining):
                theirs += 1
            elif member.standing is Standing.ACTIVE:
                ours += 1
        # Between equally many, a state with a past is worth more.
        return (theirs, _has_past(joining)) > (ours, self._has_past)

    def is_still(self, joining: Joining, step: int) -> bool:
        """Whether an untrained device has what all began with, and no step has been taken since."""
        is_at_start = step == self._first_step and not self._has_past
        return is_at_start and self._has_weights_of(joining)

    def _are_those_of(self, joining: Joining) -> bool:
        """Whether a device has the weights, as far as they are told."""
        is_told = bool(joining.weights_digest and self._weights_digest)
        return not is_told or self._has_weights_of(joining)

    def _has_weights_of(self, joining: Joining) -> bool:
        """Whether the weights are those of a device, to the last bit or but for rounding."""
        return joining.weights_digest == self._weights_digest or are_alike(joining.sketch, self._sketch)


def have_same_weights(one: Joining, other: Joining) -> bool:
    """Whether two devices told the same weights, to the last bit or but for rounding."""
    return one.weights_digest == other.weights_digest or are_alike(one.sketch, other.sketch)


def _has_past(joining: Joining) -> bool:
    # A device that only lost its connection sends no digest; what it has is in the session already.
    return bool(joining.next_step and joining.weights_digest)
