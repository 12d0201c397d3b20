"""Vectors that come in pieces, one of each device: their inner products, and combinations of them.

All is computed in float64 in blocks that fit into the cache, and in the order of the vectors, so that the result does
not depend on who came first; a result is rounded to float32 once.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from edgenewton.v1.codecs import Float32Array
from numpy.typing import NDArray

Vector = Sequence[Float32Array]
"""Its pieces, flat, in an order that is the same for all."""
Float64Array = NDArray[np.float64]

_BLOCK = 16_384
"""Elements that are worked on at once."""


def gram(vectors: Sequence[Vector]) -> Float64Array:
    """Return the inner products of n vectors, `[n, n]`."""
    products = np.zeros((len(vectors), len(vectors)))
    for piece in range(len(vectors[0])):
        for _, block in _blocks([vector[piece] for vector in vectors]):
            products += block @ block.T
    return products


def distances(products: Float64Array) -> Float64Array:
    """Return the squared distances of vectors with these inner products, `[n, n]`."""
    squares = products.diagonal()
    found: Float64Array = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def combination(vectors: Sequence[Vector], coefficients: Float64Array) -> list[Float32Array]:
    """Return the pieces of the sum of n vectors, each times its coefficient `[n]`."""
    used = [number for number, coefficient in enumerate(coefficients) if coefficient] or [0]
    few = coefficients[used]
    return by_coordinate([vectors[number] for number in used], lambda block: few @ block)


def by_coordinate(vectors: Sequence[Vector], reduce: Callable[[Float64Array], Float64Array]) -> list[Float32Array]:
    """Return the pieces of what a function makes of blocks `[n, elements]` of n vectors: `[elements]`."""
    results = []
    for piece in range(len(vectors[0])):
        pieces = [vector[piece] for vector in vectors]
        result = np.empty(len(pieces[0]), np.float32)
        for where, block in _blocks(pieces):
            result[where] = reduce(block)
        results.append(result)
    return results


def _blocks(pieces: Sequence[Float32Array]) -> Iterator[tuple[slice, Float64Array]]:
    for begin in range(0, len(pieces[0]), _BLOCK):
        where = slice(begin, begin + _BLOCK)
        yield where, np.stack([piece[where] for piece in pieces]).astype(np.float64)
