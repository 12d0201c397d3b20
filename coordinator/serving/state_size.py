"""How large a device's whole state may be, from the tensors that it exchanges."""

import math
from collections.abc import Iterable

from edgenewton.v1.tensor_spec import TensorSpec

LEAST_BYTES = 64 << 20
"""Whatever the model: buffers, options, and what a file format takes."""
_COPIES = 16
"""Of an element: weights, momentum, averages, what error feedback keeps, second moments."""
_FACTORS = 4
"""Of a side of a matrix with n rows: its factor, the inverse, the basis and what is older, of n x n elements each."""
_ELEMENT_BYTES = 8


def largest_state(fingerprint: Iterable[TensorSpec]) -> int:
    """Return the bytes that no honest device's state exceeds: several copies of each tensor, and its curvature."""
    elements = 0
    for spec in fingerprint:
        for part in spec.parts or (spec,):
            elements += _COPIES * part.size
            if part.kind != "curvature" and part.shape:
                rows, columns = part.shape[0], math.prod(part.shape[1:])
                elements += _FACTORS * (rows**2 + columns**2)
    return LEAST_BYTES + _ELEMENT_BYTES * elements
