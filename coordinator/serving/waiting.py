"""Calls that wait because the session cannot answer them yet: they look again when something has changed."""

import asyncio
import time
from contextlib import suppress

HOLD_S = 5.0
"""Seconds that a call waits; then its device is told to ask again, before it takes the coordinator for dead."""
_LOOK_EVERY_S = 1.0
"""Seconds after which it looks again in any case: what others brought may be out of date."""


class Waiting:
    """Wakes those that wait."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Let all look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until_changed(self, since: float) -> bool:
        """Wait for a change; return whether there may be one, and False once a call has waited since then long enough.

        Args:
            since: when the call came, of the monotonic clock.

        """
        left_s = since + HOLD_S - time.monotonic()
        if left_s <= 0:
            return False
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), min(left_s, _LOOK_EVERY_S))
        return True
