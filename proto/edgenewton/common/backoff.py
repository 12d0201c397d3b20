"""Waiting times between attempts: exponential with full jitter, so that many devices do not come back at once.

Brooker 2015, "Exponential Backoff And Jitter" (AWS Architecture Blog).
"""

import random
from collections.abc import Iterator


def backoff(first_s: float = 0.05, longest_s: float = 2.0, generator: random.Random | None = None) -> Iterator[float]:
    """Yield seconds to wait before the next attempt, without end."""
    draw = generator or random.Random()
    bound = first_s
    while True:
        yield draw.uniform(bound / 4, bound)
        bound = min(longest_s, 2 * bound)
