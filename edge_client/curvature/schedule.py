"""Steps that are ever farther apart: what changes fast at first, and slowly later, is renewed on a log schedule."""

GROWTH = 1.5


def is_on_log_schedule(number: int, growth: float = GROWTH, first: int = 1, at_most: int | None = None) -> bool:
    """Whether a number is one of 0, 1, 2, 3, 5, 8, 12, ...: each is `growth` times the one before, rounded up.

    Args:
        number: asked for.
        growth: above 1.
        first: so many numbers from 0 on are all on it.
        at_most: how far two neighbours may be apart; None for any distance.

    """
    if number < first:
        return number >= 0
    due = first - 1
    while due < number:
        distance = _distance(due, growth)
        if at_most is not None and distance >= at_most:  # for all that follow, too
            return (number - due) % at_most == 0
        due += distance
    return due == number


def next_on_log_schedule(number: int, growth: float = GROWTH) -> int:
    """Return the first number of the schedule above one that is at least 0."""
    due = 0
    while due <= number:
        due += _distance(due, growth)
    return due


def _distance(due: int, growth: float) -> int:
    """Return how far the next one is."""
    return max(1, int(-(-due * growth // 1)) - due)
