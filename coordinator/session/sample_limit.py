"""How many samples a device's contribution counts with, whatever it claims: they are its weight in a mean.

More are capped and not refused: a device that has more is welcome with the rest of what it learnt, and whoever lies
gains no more by it.

In the first step nobody has declared a batch yet. None is taken to be larger than what half of the devices hold that
the session begins with. So who they are must be known: what comes earlier is limited once they are.
"""

from collections import deque
from collections.abc import Mapping
from statistics import median_high, median_low

from coordinator.session.members import MAX_SAMPLES, Joining, Member
from coordinator.session.step import Contribution

FACTOR = 16
"""Times the median of what members declare; unless the session has a limit of its own."""
WINDOW = 10
"""Steps that the median is looked for in: a step that averages buffers alone has batches of one sample."""


class SampleLimit:
    """Knows what members declared in the last steps, for each batch.

    Args:
        most: the session's own limit; None for `FACTOR` times the median of the members' batches.

    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._medians: deque[float] = deque(maxlen=WINDOW)
        self._batches: int | None = None
        """Of the last step."""
        self._held: int | None = None
        """What half of the devices hold that the session began with; None if no device says, or none has begun."""
        self._has_started = False

    @property
    def is_certain(self) -> bool:
        """Whether a limit cannot change any more before the step is committed."""
        return self._most is not None or bool(self._medians) or self._has_started

    def start(self, members: Mapping[str, Member], batches: int | None) -> int | None:
        """Take in which members a session begins with; return what limits all of them in this step, if anything does.

        Args:
            members: all of them.
            batches: of the step, if the session has chosen them.

        """
        held = [member.joining.training_samples for member in members.values() if member.joining.training_samples]
        self._has_started = True
        self._held = median_high(held) if held else None
        some = next(iter(members.values()), None)
        return None if some is None else self._of_all(self._length(some.joining, batches))

    def limit(self, joining: Joining, batches: int | None) -> int:
        """Return how many samples of a device count in the step that is on.

        Args:
            joining: the device, as it joined.
            batches: of the step, if the session has chosen them; else it is taken to have as many as the last.

        """
        length = self._length(joining, batches)
        own = joining.training_samples * length if length is not None and joining.training_samples else None
        return max(1, min(bound for bound in (MAX_SAMPLES, own, self._of_all(length)) if bound is not None))

    def committed(self, contributions: Mapping[str, Contribution], batches: int) -> None:
        """Take the end of a step in."""
        declared = [c.samples / batches for c in contributions.values() if c.samples]
        if declared:
            self._medians.append(median_low(declared))
            self._batches = batches

    def _length(self, joining: Joining, batches: int | None) -> int | None:
        """Return how many batches a contribution is of at most; None if nobody knows."""
        if any(spec.kind == "delta" for spec in joining.fingerprint):
            return max(batches or 0, self._batches or 0) or None
        return 1

    def _of_all(self, length: int | None) -> int | None:
        """Return the limit that is the same for all devices."""
        if self._most is not None:
            return self._most
        if length is None:
            return None
        if self._medians:
            return int(FACTOR * max(self._medians) * length)
        return None if self._held is None else self._held * length
