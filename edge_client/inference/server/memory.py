"""How much memory requests may take: each, those of one client, and all that are answered at the same time.

It is counted before it is taken, from sizes that are known by then: bytes that came, bytes that a parser will make of
them, bytes of an answer.
"""

import threading
from collections import Counter
from types import TracebackType
from typing import Self

from edgenewton.common.clients import client_of

from edge_client.inference.errors import OverloadedError, TooLargeError

_MB = 1e6


class MemoryBudget:
    """Counts the bytes of the requests that are being answered. It may be used by several threads.

    Args:
        most: bytes for all; one client's requests, and so one request, may have half of them.

    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_per_client = most // 2
        self._taken = 0
        self._of_client: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Bytes that are counted now."""
        return self._taken

    def request(self, address: str) -> "RequestMemory":
        """Return what counts what a request from an address takes inside `with`, and no longer."""
        return RequestMemory(self, client_of(address))

    def take(self, memory: "RequestMemory", size: int, what: str) -> None:
        """Count more bytes of a request; see `RequestMemory.take`."""
        if memory.taken + size > self._most_per_client:
            needed, most = (memory.taken + size) / _MB, self._most_per_client / _MB
            raise TooLargeError(
                f"{what} needs {needed:,.0f} MB of memory with what came before; {most:,.0f} are the limit"
            )
        with self._lock:
            if self._of_client[memory.client] + size > self._most_per_client or self._taken + size > self._most:
                raise OverloadedError(f"overloaded: there is no memory left for {what}; try again later")
            self._taken += size
            self._of_client[memory.client] += size
            memory.taken += size

    def give_back(self, memory: "RequestMemory") -> None:
        """Count what a request took no longer."""
        with self._lock:
            self._taken -= memory.taken
            self._of_client[memory.client] -= memory.taken
            if not self._of_client[memory.client]:
                del self._of_client[memory.client]
            memory.taken = 0


class RequestMemory:
    """What one request takes."""

    __slots__ = ("_budget", "client", "taken")

    def __init__(self, budget: MemoryBudget, client: str) -> None:
        self._budget = budget
        self.client = client
        self.taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._budget.give_back(self)

    def take(self, size: int, what: str) -> None:
        """Count more bytes, before they are taken.

        Args:
            size: how many.
            what: they are for, in the error.

        Raises:
            TooLargeError: the request takes more than one may.
            OverloadedError: the requests of its client, or all, take too much already.

        """
        self._budget.take(self, size, what)
