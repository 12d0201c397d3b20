"""The search for a method's options: the same number of trials for every method, one coordinate after the other."""

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import product

from benchmarks.frontier.interface import Grid, Options

Rank = tuple[float, ...]
"""How good options are; the smallest is the best."""
_Place = tuple[int, ...]


def search(space: Mapping[str, Grid], rank: Callable[[Options], Rank], trials: int, seed: int = 0) -> list[Options]:
    """Return the options that were tried, the best first.

    From the start it walks along each option in turn, for as long as its neighbours on the grid are better. When no
    neighbour is, it tries places around the best that differ in several options, in an order that the seed chooses.
    """
    try:
        climb = _Climb(space, rank, trials, random.Random(seed))
        climb.run()
    except _SpentError:
        pass
    return [climb.options(place) for place in sorted(climb.ranks, key=climb.ranks.__getitem__)]


class _SpentError(Exception):
    """No trial is left."""


class _Climb:
    def __init__(
        self, space: Mapping[str, Grid], rank: Callable[[Options], Rank], trials: int, order: random.Random
    ) -> None:
        self._space = space
        self._rank = rank
        self._trials = trials
        self._order = order
        self.ranks: dict[_Place, Rank] = {}
        self._best: _Place = tuple(grid.values.index(grid.start) for grid in space.values())

    def options(self, place: _Place) -> Options:
        return {name: grid.values[at] for (name, grid), at in zip(self._space.items(), place, strict=True)}

    def run(self) -> None:
        self._try(self._best)
        while True:
            while self._walk_all():
                pass
            place = next(self._further(), None)
            if place is None:
                return
            self._is_better(place)

    def _walk_all(self) -> bool:
        moved = [self._walk(axis) for axis in range(len(self._space))]
        return any(moved)

    def _walk(self, axis: int) -> bool:
        """Walk up or, if that is no better, down; return whether the best has moved."""
        for direction in (1, -1):
            before = self._best
            while self._is_better(self._moved(axis, direction)):
                pass
            if self._best != before:
                return True
        return False

    def _moved(self, axis: int, direction: int) -> _Place | None:
        at = self._best[axis] + direction
        if not 0 <= at < len(list(self._space.values())[axis].values):
            return None
        return (*self._best[:axis], at, *self._best[axis + 1 :])

    def _is_better(self, place: _Place | None) -> bool:
        if place is None or place in self.ranks:
            return False
        self._try(place)
        is_better = self.ranks[place] < self.ranks[self._best]
        if is_better:
            self._best = place
        return is_better

    def _try(self, place: _Place) -> None:
        if len(self.ranks) == self._trials:
            raise _SpentError
        self.ranks[place] = self._rank(self.options(place))

    def _further(self) -> Iterator[_Place]:
        """Yield places that have not been tried: first those around the best, then those beyond."""
        sizes = [len(grid.values) for grid in self._space.values()]
        places = [place for place in product(*(range(size) for size in sizes)) if place not in self.ranks]
        self._order.shuffle(places)
        yield from sorted(places, key=self._distance)

    def _distance(self, place: _Place) -> int:
        return max((abs(at - best) for at, best in zip(place, self._best, strict=True)), default=0)
