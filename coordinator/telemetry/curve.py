"""A quantity over the steps, in bounded memory."""

from collections.abc import Iterator

LIMIT = 512
"""So many points a curve has at most."""


class Curve:
    """Points of one quantity, by step. When there are too many, every second one goes, and later ones come thinner.

    The latest point is always there.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._points: list[tuple[int, float]] = []
        self._last: tuple[int, float] | None = None
        self._stride = 1
        self._count = 0

    def add(self, step: int, value: float) -> None:
        """Add a point; those from this step on are replaced, because the step is done again."""
        while self._points and self._points[-1][0] >= step:
            self._points.pop()
        if self._count % self._stride == 0:
            self._points.append((step, value))
        self._count += 1
        self._last = (step, value)
        if len(self._points) > self._limit:
            self._points = self._points[::2]
            self._stride *= 2

    def __iter__(self) -> Iterator[tuple[int, float]]:
        yield from self._points
        if self._last is not None and (not self._points or self._points[-1] != self._last):
            yield self._last

    def since(self, step: int) -> list[tuple[int, float]]:
        """Return the points after a step."""
        return [point for point in self if point[0] > step]

    @property
    def last(self) -> float | None:
        """The latest value."""
        return None if self._last is None else self._last[1]
