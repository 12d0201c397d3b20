"""The smallest to the largest of a few numbers, for many positions at once: a sorting network of whole rows.

Batcher 1968, "Sorting networks and their applications": odd-even merges of any number of rows. One comparison is a
minimum and a maximum of two rows, which numpy does with vector instructions; to sort each column takes ten times as
long. What no wanted rank depends on is left out.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from edgenewton.v1.codecs import Float32Array


class _Comparison(NamedTuple):
    """Of two rows: the smaller numbers come to the low one, the larger ones to the high one."""

    low: int
    high: int
    is_low_needed: bool
    is_high_needed: bool


def ranked(rows: Sequence[Float32Array], ranks: Collection[int]) -> list[Float32Array]:
    """Return the rows of some ranks, 0 for the smallest numbers, in their order.

    Args:
        rows: of one length, finite; they are overwritten, and what is returned is in their memory.
        ranks: of the rows that are wanted.

    """
    wanted = sorted(ranks)
    order = list(rows)
    spare = np.empty_like(order[0])
    for low, high, is_low_needed, is_high_needed in _network(len(order), tuple(wanted)):
        one, other = order[low], order[high]
        if is_low_needed:
            np.minimum(one, other, out=spare)
        if is_high_needed:
            np.maximum(one, other, out=other)
        if is_low_needed:
            order[low], spare = spare, one
    return [order[rank] for rank in wanted]


@lru_cache(maxsize=64)
def _network(count: int, wanted: tuple[int, ...]) -> list[_Comparison]:
    """Return the comparisons that bring these ranks of so many rows to their places."""
    needed = set(wanted)
    found = []
    for low, high in reversed(_comparisons(count)):
        if low in needed or high in needed:
            found.append(_Comparison(low, high, low in needed, high in needed))
            needed |= {low, high}
    return found[::-1]


def _comparisons(count: int) -> list[tuple[int, int]]:
    """Return the pairs of rows that an odd-even merge sort compares (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    pairs = []
    top = 1 << max(0, (count - 1).bit_length() - 1)
    length = top
    while length:
        part, residue, distance = top, 0, length
        while True:
            pairs += [(i, i + distance) for i in range(count - distance) if i & length == residue]
            if part == length:
                break
            distance, part, residue = part - length, part >> 1, length
        length >>= 1
    return pairs
