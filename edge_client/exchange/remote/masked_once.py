"""What keeps a device's contribution from being in two sums: their difference could be that of one device alone.

The masks of a step may have to be agreed on twice, with the same contributions, because the coordinator went down. One
that lies could ask for that at will, and leave one device out the second time. So a device

- reveals shares for one round of keys in each step. Two rounds with the same circle cannot both be unmasked then, for
  each takes two thirds of it, unless a third of the devices collude with the coordinator. It also follows that nobody
  learns both secrets of a device by passing on its keys of one round in another;
- contributes in one circle to each step, so that the same devices hold the shares of all its rounds.
"""

from collections.abc import Sequence
from typing import Any

_KEPT_STEPS = 64


class MaskedOnce:
    """Remembers what a device did in each step; steps before those that it remembers are past."""

    def __init__(self) -> None:
        self._circles: dict[int, tuple[str, ...]] = {}
        """In which it contributed, by step."""
        self._revealed: dict[int, bytes] = {}
        """For which of its keys it revealed shares, by step."""
        self._past = -1
        """The last step that is not remembered."""

    def may_mask(self, step: int, circle: Sequence[str]) -> bool:
        """Whether a contribution to a step may leave under masks of a circle."""
        is_open = step > self._past and step not in self._revealed
        return is_open and self._circles.get(step, tuple(circle)) == tuple(circle)

    def may_reveal(self, step: int, public: bytes) -> bool:
        """Whether shares may be revealed that belong to a key of this device."""
        return step > self._past and self._revealed.get(step, public) == public

    def has_revealed(self, step: int) -> bool:
        """Whether the contributions to a step may be known in sum, whatever the coordinator says."""
        return step in self._revealed

    def contributed(self, step: int, circle: Sequence[str]) -> None:
        """Note in which circle a contribution leaves."""
        self._circles[step] = tuple(circle)
        self._forget(self._circles)

    def revealed(self, step: int, public: bytes) -> None:
        """Note for which key shares are revealed."""
        self._revealed[step] = public
        self._forget(self._revealed)

    def _forget(self, known: dict[int, Any]) -> None:
        while len(known) > _KEPT_STEPS:
            oldest = min(known)
            del known[oldest]
            self._past = max(self._past, oldest)
