"""Steps that are ever farther apart: what changes fast at first, and slowly later, is renewed on a log schedule."""


def is_on_log_schedule(number: int, growth: float = 1.5) -> bool:
    """Whether a number is one of 0, 1, 2, 3, 5, 8, 12, ...: each is `growth` times the one before, rounded up."""
    due = 0
    while due < number:
        due = max(due + 1, int(-(-due * growth // 1)))
    return due == number
