"""Where the diagonals of curvature statistics stand: all that the coordinator knows of a statistic's meaning."""

from functools import lru_cache

import numpy as np
from edgenewton.v1.tensor_spec import TensorSpec, matrix_size
from numpy.typing import NDArray


@lru_cache(maxsize=1024)
def diagonal_positions(spec: TensorSpec) -> NDArray[np.int64]:
    """Return which elements of a tensor, flat, are on a diagonal, ascending: they can't be negative.

    All elements of "diagonals", one in each row of "triangles", none of a tensor without structure.
    """
    if spec.structure == "diagonals":
        return np.arange(spec.size)
    if spec.structure != "triangles":
        return np.empty(0, np.int64)
    packed = spec.shape[-1]
    size = matrix_size(packed) or 0
    rows = np.arange(size)
    of_one = rows * size - rows * (rows - 1) // 2
    return (np.arange(spec.size // packed)[:, None] * packed + of_one).reshape(-1)
