"""How many messages may be on their way at the same time: each takes its whole size before anybody can look at it."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator


class Reception:
    """Gives places to those whose message is awaited; who finds none waits. Use it on one event loop.

    What is not awaited yet stays with its sender, but for the first 64 KiB.

    Args:
        most: places in all.
        most_per_client: places of one client.

    """

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._coming: Counter[str] = Counter()
        self._total = 0
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Wait for a place, and have it inside `async with`."""
        while self._total >= self._most or self._coming[client] >= self._most_per_client:
            self._freed.clear()
            await self._freed.wait()
        self._total += 1
        self._coming[client] += 1
        try:
            yield
        finally:
            self._total -= 1
            self._coming[client] -= 1
            if not self._coming[client]:
                del self._coming[client]
            self._freed.set()
