"""A time limit that many tasks wait under at once, on one timer of the event loop."""

import asyncio
from collections import OrderedDict
from types import TracebackType
from typing import Self


class SharedTimeout:
    """`asyncio.timeout` for whoever waits, always for the same time. Use it on one running event loop.

    Nearly all wait for far less than the limit. A timer of one's own, which is cancelled, costs each of them more than
    a place in this queue does, whose timer is that of the one that has waited longest.

    Args:
        seconds: that each may wait.

    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: OrderedDict[Limited, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def limit(self) -> "Limited":
        """Return what limits the time of the current task inside `with`; after it, TimeoutError is raised there."""
        return Limited(self)

    def add(self, limited: "Limited") -> None:
        """Let somebody wait."""
        loop = asyncio.get_running_loop()
        limited.until = loop.time() + self.seconds
        self._waiting[limited] = None
        if self._timer is None:
            self._timer = loop.call_at(limited.until, self._end_late)

    def discard(self, limited: "Limited") -> None:
        """Let somebody wait no longer."""
        self._waiting.pop(limited, None)

    def _end_late(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting:
            limited = next(iter(self._waiting))
            if limited.until > loop.time():
                self._timer = loop.call_at(limited.until, self._end_late)
                return
            del self._waiting[limited]
            limited.end()


class Limited:
    """One that waits; see `SharedTimeout.limit`."""

    __slots__ = ("_cancelling", "_is_late", "_limit", "_task", "until")

    def __init__(self, limit: SharedTimeout) -> None:
        self._limit = limit
        self._is_late = False
        self.until = 0.0
        """Point in time, on the event loop's clock."""

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit is for a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._limit.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limit.discard(self)
        # Somebody else may have cancelled the task, too; then it ends.
        if self._is_late and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        """Cancel the wait: it is too long."""
        self._is_late = True
        self._task.cancel()
