"""Who masks with whom, and who holds shares of whose secrets: everybody of everybody's, up to many devices.

Of more than `FULL` devices each masks with some only (Bell et al. 2020): they stand in a ring, whose order follows from
the step, and each has the same number of neighbours on both sides. What is lost by that is a chance: that so many of a
device's neighbours drop out that its secrets cannot be had, or that so many of them collude with a coordinator that
lies that it learns both. Their number makes both chances small, as in the paper's section 3; up to some hundred devices
that takes nearly all of them.
"""

import hashlib
from collections.abc import Collection
from functools import lru_cache
from math import ceil, exp, lgamma

FULL = 128
"""Up to so many devices each masks with all others."""
DROPPED = 1 / 3
"""Part of the devices that may drop out of a step."""
COLLUDING = 1 / 10
"""Part of more than `FULL` devices that may collude with the coordinator; of fewer, it is a third."""
_NEEDED = 0.6
"""Part of the shares of a secret that gives it, of more than `FULL` devices; more than (1 + `COLLUDING`) / 2."""
_LOST = 2.0**-30
_LEAKED = 2.0**-40


class Graph:
    """The neighbours of each device in a step.

    Args:
        circle: the devices that may take part.
        step: its number.

    """

    def __init__(self, circle: Collection[str], step: int) -> None:
        self._circle = sorted(circle)
        self._degree = degree_of(len(self._circle))
        self._ring: list[str] = []
        self._places: dict[str, int] = {}
        if self._degree < len(self._circle) - 1:
            self._ring = sorted(self._circle, key=lambda name: hashlib.sha256(f"{step} {name}".encode()).digest())
            self._places = {name: place for place, name in enumerate(self._ring)}

    @property
    def needed(self) -> int:
        """How many shares of a secret give it.

        Two thirds of all, or rather more than half of a part of many. So a coordinator that tells different devices
        different things cannot have two secrets of a device, unless many devices collude with it: it takes more shares
        than the others give once each.
        """
        return shares_needed(len(self._circle))

    @property
    def least_contributions(self) -> int:
        """Of how many devices a sum must be, to be unmasked: two thirds of all, or of many the part that is needed."""
        devices = len(self._circle)
        return shares_needed(devices) if devices <= FULL else ceil(_NEEDED * devices)

    def neighbours(self, device: str) -> list[str]:
        """Return with which devices one masks, in the order of their names."""
        if not self._ring:
            return [other for other in self._circle if other != device]
        place = self._places[device]
        offsets = range(1, self._degree // 2 + 1)
        return sorted({self._ring[(place + sign * offset) % len(self._ring)] for offset in offsets for sign in (1, -1)})


def shares_needed(devices: int) -> int:
    """Return how many shares of a secret give it, if so many devices may take part."""
    if devices <= FULL:
        return -(-2 * devices // 3)
    return ceil(_NEEDED * (degree_of(devices) + 1))


@lru_cache(maxsize=64)
def degree_of(devices: int) -> int:
    """Return how many neighbours each of so many devices has: all others, or an even number."""
    if devices <= FULL:
        return devices - 1
    few, enough = 2, devices - 1 + devices % 2
    while enough - few > 2:  # the more there are, the smaller are both chances
        middle = (few + enough) // 4 * 2
        few, enough = (few, middle) if _is_enough(middle, devices) else (middle, enough)
    return min(enough, devices - 1)


def _is_enough(degree: int, devices: int) -> bool:
    holders = degree + 1
    needed = ceil(_NEEDED * holders)
    lost = _chance_of_more(devices - 1, ceil(DROPPED * devices), degree, holders - needed)
    # Who lies to both halves needs `needed` shares of each secret; those that collude give both, the device none.
    leaked = _chance_of_more(devices - 1, ceil(COLLUDING * devices), degree, 2 * needed - holders - 1)
    return lost * devices < _LOST and leaked * devices < _LEAKED


def _chance_of_more(population: int, marked: int, drawn: int, limit: int) -> float:
    """Return the chance that of some, drawn at random without putting them back, more than `limit` are marked."""
    total = _log_choices(population, drawn)
    return sum(
        exp(_log_choices(marked, k) + _log_choices(population - marked, drawn - k) - total)
        for k in range(max(limit + 1, drawn - population + marked), min(marked, drawn) + 1)
    )


def _log_choices(population: int, drawn: int) -> float:
    return lgamma(population + 1) - lgamma(drawn + 1) - lgamma(population - drawn + 1)
