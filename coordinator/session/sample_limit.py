"""How many samples a device's contribution counts with, whatever it claims: they are its weight in a mean.

More are capped and not refused: a device that has more is welcome with the rest of what it learnt, and whoever lies
gains no more by it.
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

    def limit(self, joining: Joining, members: Mapping[str, Member], batches: int | None) -> int:
        """Return how many samples of a device count in the step that is on.

        Args:
            joining: the device, as it joined.
            members: of the session.
            batches: of the step, if the session has chosen them; else it is taken to have as many as the last.

        """
        if any(spec.kind == "delta" for spec in joining.fingerprint):
            length = max(batches or 0, self._batches or 0) or None
        else:
            length = 1
        bounds = [MAX_SAMPLES]
        if length is not None and joining.training_samples:
            bounds.append(joining.training_samples * length)
        if self._most is not None:
            bounds.append(self._most)
        elif length is not None and self._medians:
            bounds.append(int(FACTOR * max(self._medians) * length))
        elif length is not None:
            # Nobody has declared a batch yet: none is larger than what half of the devices hold.
            held = [member.joining.training_samples for member in members.values() if member.joining.training_samples]
            bounds += [median_high(held) * length] if held else []
        return max(1, min(bounds))

    def committed(self, contributions: Mapping[str, Contribution], batches: int) -> None:
        """Take the end of a step in."""
        declared = [c.samples / batches for c in contributions.values() if c.samples]
        if declared:
            self._medians.append(median_low(declared))
            self._batches = batches
