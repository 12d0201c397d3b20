"""The frames that a session sends to all its devices, kept once for all of them.

Each device reads at its own pace from its own position. Memory is bounded whatever the number and speed of the
devices: steps before the last one are kept within a budget, for devices that come back, and one that is slower than
that has to heal.
"""

from collections import deque
from typing import NamedTuple


class LoggedFrame(NamedTuple):
    """A frame, and how many bytes the codec saved in it."""

    data: bytes
    saved: int


class BroadcastLog:
    """Frames of the step that is on, of the last one, and of as many earlier ones as the budget allows."""

    def __init__(self, budget_bytes: int, step: int) -> None:
        self._budget = budget_bytes
        self._frames: deque[LoggedFrame] = deque()
        self._first = 0
        self._size = 0
        self._starts: dict[int, int] = {step: 0}

    @property
    def oldest_step(self) -> int:
        """The first step whose frames are all here."""
        return next(iter(self._starts))

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def append(self, frame: bytes, saved: int = 0) -> None:
        """Add a frame of the step that is on."""
        self._frames.append(LoggedFrame(frame, saved))
        self._size += len(frame)

    def begin_step(self, step: int) -> None:
        """Begin the next step; the oldest ones go if they are over the budget."""
        self._starts[step] = self._first + len(self._frames)
        # The step before the new one stays: devices that lost its commit with their connection still need it.
        while self._size > self._budget and len(self._starts) > 2:
            del self._starts[self.oldest_step]
            self._drop_before(self._starts[self.oldest_step])

    def restart(self, step: int) -> None:
        """Forget everything: the session stands at a step that does not follow from the last."""
        end = self._first + len(self._frames)
        self._drop_before(end)
        self._starts = {step: end}

    def position_of(self, step: int) -> int | None:
        """Return where a step begins, or None if its frames are not all here."""
        return self._starts.get(step)

    def read(self, position: int) -> LoggedFrame | None:
        """Return the frame at a position, or None if it is still to come.

        Raises:
            LookupError: it is not kept any more.

        """
        if position < self._first:
            raise LookupError(f"frame {position} is gone")
        index = position - self._first
        return self._frames[index] if index < len(self._frames) else None

    def _drop_before(self, position: int) -> None:
        while self._first < position:
            self._size -= len(self._frames.popleft().data)
            self._first += 1
