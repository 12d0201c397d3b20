"""The bounded history of a session's events, and those who follow it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from edgenewton.v1 import exchange_pb2 as pb

HISTORY = 20_000
"""So many events of a session are kept for a user interface that comes later."""


class EventLog:
    """Keeps events in order; every follower reads at its own pace and may fall behind the history.

    They are kept as bytes: a message takes some ten times the memory.
    """

    def __init__(self, history: int = HISTORY) -> None:
        self._events: deque[bytes] = deque(maxlen=history)
        self._count = 0
        self._closed = False
        self._changed = asyncio.Event()

    def append(self, event: pb.SessionEvent) -> None:
        """Add an event and wake the followers."""
        self._events.append(event.SerializeToString())
        self._count += 1
        self._wake()

    def kept(self) -> list[pb.SessionEvent]:
        """Return the events that are kept, the oldest first."""
        return [pb.SessionEvent.FromString(event) for event in self._events]

    def close(self) -> None:
        """Let the followers end after the last event."""
        self._closed = True
        self._wake()

    async def follow(self) -> AsyncIterator[pb.SessionEvent]:
        """Yield all events, from the oldest that is kept, until the log is closed."""
        position = 0
        while True:
            changed = self._changed
            position = max(position, self._count - len(self._events))
            while position < self._count:
                # The deque may drop events while a slow follower is suspended in the yield.
                oldest = self._count - len(self._events)
                position = max(position, oldest)
                event = self._events[position - oldest]
                position += 1
                yield pb.SessionEvent.FromString(event)
            if self._closed:
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
