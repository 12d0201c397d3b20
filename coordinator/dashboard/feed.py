"""The page's live feed: server-sent events, written once for all viewers, and not at all while there are none."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

from edgenewton.common.clients import client_of

from coordinator.dashboard.state import State, describe
from coordinator.telemetry.metrics import WatchedCoordinator

log = logging.getLogger(__name__)

PERIOD_S = 0.5
"""Seconds between two updates."""
KEEP_ALIVE_S = 15.0
"""Seconds without an update, after which a viewer is shown that the feed lives."""
MAX_VIEWERS = 32
MAX_VIEWERS_PER_CLIENT = 16


class TooManyViewersError(RuntimeError):
    """No more viewers are served at once."""


class Feed:
    """Tells viewers of the sessions: everything at first, then what is new.

    Args:
        coordinator: whose sessions are shown.
        period_s: seconds between two updates.

    """

    def __init__(self, coordinator: WatchedCoordinator, period_s: float = PERIOD_S) -> None:
        self._coordinator = coordinator
        self._period_s = period_s
        self._viewers: Counter[str] = Counter()
        """How many each client has."""
        self._number = 0
        self._update = b""
        self._last = ""
        self._told: dict[str, int] = {}
        """The last step of each session that the curves were told of."""
        self._changed = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None
        self._is_closed = False

    def everything(self) -> State:
        """Return all that is known of all sessions."""
        now = time.time()
        return {"now": now, "sessions": [describe(room, now) for room in self._coordinator.rooms]}

    def admit(self, address: str) -> None:
        """Check that one more viewer can be served, at an address.

        Raises:
            TooManyViewersError: there are too many, there or in all.

        """
        if self._viewers.total() >= MAX_VIEWERS:
            raise TooManyViewersError(f"{MAX_VIEWERS} viewers are connected already; close a page, or try again later")
        if self._viewers[client_of(address)] >= MAX_VIEWERS_PER_CLIENT:
            raise TooManyViewersError(
                f"{MAX_VIEWERS_PER_CLIENT} viewers are connected from {address} already; close a page"
            )

    async def follow(self, address: str) -> AsyncIterator[bytes]:
        """Yield events until the feed is closed. A viewer that reads slowly misses updates and is told everything anew.

        Raises:
            TooManyViewersError: there are too many.

        """
        self.admit(address)
        client = client_of(address)
        self._viewers[client] += 1
        try:
            if self._ticker is None:
                self._ticker = asyncio.create_task(self._tick(), name="feed of the page")
            number = self._number
            yield _event("everything", _dump(self.everything()))
            while not self._is_closed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), KEEP_ALIVE_S)
                if self._number == number:
                    yield b": the feed lives\n\n"
                    continue
                is_next = self._number == number + 1
                number = self._number
                yield self._update if is_next else _event("everything", _dump(self.everything()))
        finally:
            self._viewers[client] -= 1
            if not self._viewers[client]:
                del self._viewers[client]
            if not self._viewers and self._ticker is not None:
                self._ticker.cancel()
                self._ticker = None

    def close(self) -> None:
        """Let all viewers end."""
        self._is_closed = True
        self._wake()

    async def _tick(self) -> None:
        self._told = {room.session.name: -1 for room in self._coordinator.rooms}
        self._take_news()
        while True:
            await asyncio.sleep(self._period_s)
            try:
                self._take_news()
            except Exception:  # the exchange shares this loop, and goes on
                log.exception("the page's feed missed an update")

    def _take_news(self) -> None:
        now = time.time()
        sessions = []
        for room in self._coordinator.rooms:
            state = describe(room, now, self._told.get(room.session.name, -1))
            sessions.append(state)
            step = room.chronicle.statistics.step
            if step is not None:
                self._told[room.session.name] = step
        text = _dump(sessions)
        if text != self._last:
            self._last = text
            self._update = _event("update", f'{{"now": {now}, "sessions": {text}}}')
            self._number += 1
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _dump(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
