"""Names that are short enough for a table, and still tell devices apart."""

from collections import Counter
from collections.abc import Iterable

LENGTH = 24
"""Characters of a name that are shown, as on the page."""


def shorten(names: Iterable[str], length: int = LENGTH) -> dict[str, str]:
    """Return how each name is shown: one that is longer loses its middle, because names differ at their ends.

    Of several names that would become alike, none is shortened.
    """
    short = {name: _without_middle(name, length) for name in names}
    times = Counter(short.values())
    return {name: shown if times[shown] == 1 else name for name, shown in short.items()}


def _without_middle(name: str, length: int) -> str:
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"
