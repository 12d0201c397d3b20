"""Vectors that come in pieces, one of each device: their inner products, and combinations of them.

All is computed in blocks that fit into the cache, sums in float64, and in the order of the vectors, so that the result
does not depend on who came first; a result is rounded to float32 once.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from edgenewton.v1.codecs import Float32Array
from numpy.typing import NDArray

Vector = Sequence[Float32Array]
"""Its pieces, flat, in an order that is the same for all."""
Float64Array = NDArray[np.float64]

_BLOCK_BYTES = 256 << 10
"""Of all vectors together, that are worked on at once."""
_LEAST_BLOCK = 512
"""Elements; with fewer numpy's calls take longer than what they do."""
_T = TypeVar("_T", bound=np.floating[Any])


def gram(vectors: Sequence[Vector]) -> Float64Array:
    """Return the inner products of n vectors, `[n, n]`."""
    products = np.zeros((len(vectors), len(vectors)))
    for piece in range(len(vectors[0])):
        for _, block in _blocks([vector[piece] for vector in vectors], np.float64):
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
    return _in_blocks([vectors[number] for number in used], np.float64, lambda block: few @ block)


def by_coordinate(
    vectors: Sequence[Vector], reduce: Callable[[Sequence[Float32Array]], Float32Array]
) -> list[Float32Array]:
    """Return the pieces of what a function makes of blocks of n vectors.

    Args:
        vectors: one of each device.
        reduce: given n rows `[elements]`, which it may overwrite, returns a row.

    """
    return _in_blocks(vectors, np.float32, lambda block: reduce(list(block)))


def _in_blocks(
    vectors: Sequence[Vector], dtype: type[_T], reduce: Callable[[NDArray[_T]], NDArray[_T]]
) -> list[Float32Array]:
    results = []
    for piece in range(len(vectors[0])):
        pieces = [vector[piece] for vector in vectors]
        result = np.empty(len(pieces[0]), np.float32)
        for where, block in _blocks(pieces, dtype):
            result[where] = reduce(block)
        results.append(result)
    return results


def _blocks(pieces: Sequence[Float32Array], dtype: type[_T]) -> Iterator[tuple[slice, NDArray[_T]]]:
    """Go through pieces in blocks `[n, elements]`, all in the same memory."""
    length = min(len(pieces[0]), max(_LEAST_BLOCK, _BLOCK_BYTES // (len(pieces) * np.dtype(dtype).itemsize)))
    memory: NDArray[_T] = np.empty((len(pieces), length), dtype)
    for begin in range(0, len(pieces[0]), length or 1):
        where = slice(begin, begin + length)
        block = memory[:, : min(length, len(pieces[0]) - begin)]
        for row, piece in zip(block, pieces, strict=True):
            row[:] = piece[where]
        yield where, block
