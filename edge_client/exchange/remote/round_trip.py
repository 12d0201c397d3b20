"""How long the way to the coordinator and back takes a message of a few bytes."""

import math
import time
from collections import deque


class RoundTrip:
    """The shortest time of all that were measured: what took longer waited behind something, here or there."""

    def __init__(self) -> None:
        self._shortest_s = math.inf
        self._under_way: deque[float] = deque()
        """When the messages left whose answers are still to come; they come in the same order."""

    @property
    def seconds(self) -> float:
        """The shortest time; 0 before anything is measured."""
        return self._shortest_s if math.isfinite(self._shortest_s) else 0.0

    def begin(self) -> None:
        """Forget what is under way: it was on a connection that is gone."""
        self._under_way.clear()

    def leave(self) -> None:
        """Note that a message leaves."""
        self._under_way.append(time.perf_counter())

    def arrive(self) -> None:
        """Note that an answer is there."""
        if self._under_way:
            self._shortest_s = min(self._shortest_s, time.perf_counter() - self._under_way.popleft())
