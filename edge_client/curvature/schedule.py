"""Steps that are ever farther apart: what changes fast at first, and slowly later, is renewed on a log schedule."""

from functools import lru_cache

GROWTH = 1.5


@lru_cache(maxsize=16)  # each layer asks in every batch
def is_on_log_schedule(number: int, growth: float = GROWTH) -> bool:
    """Whether a number is one of 0, 1, 2, 3, 5, 8, 12, ...: each is `growth` times the one before, rounded up."""
    return number == 0 or (number > 0 and next_on_log_schedule(number - 1, growth) == number)


def next_on_log_schedule(number: int, growth: float = GROWTH) -> int:
    """Return the first number of the schedule above one that is at least 0."""
    due = 0
    while due <= number:
        due = max(due + 1, int(-(-due * growth // 1)))
    return due
