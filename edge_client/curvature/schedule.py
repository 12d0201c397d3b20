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
        due = _following(due, growth)
    return due


def ever_farther(growth: float, begin: int, at_most: int) -> list[int]:
    """Return the numbers of a log schedule up to the one after which all are `at_most` apart.

    Args:
        growth: above 1.
        begin: the first one, at least 0.
        at_most: how far two neighbours may be apart.

    """
    numbers = [begin]
    while (following := _following(numbers[-1], growth)) - numbers[-1] < at_most:
        numbers.append(following)
    return numbers


def _following(due: int, growth: float) -> int:
    return max(due + 1, int(-(-due * growth // 1)))
