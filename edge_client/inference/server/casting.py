"""Numbers of one datatype as those of another, where each is the same number in both."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.inference.errors import BadRequestError
from edge_client.inference.server.datatypes import NUMPY_TYPES


def cast_exactly(name: str, given: str, data: NDArray[Any], wanted: str) -> NDArray[Any]:
    """Return a tensor in the datatype that the model expects.

    Args:
        name: of the tensor, in the error.
        given: its datatype.
        data: its numbers.
        wanted: the datatype that the model expects.

    Raises:
        BadRequestError: a number is another one in that datatype, or is none; the text names it and its place.

    """
    if "BOOL" in (given, wanted):
        raise BadRequestError(f"input {name!r} is {given}; the model expects {wanted}")
    dtype = NUMPY_TYPES[wanted]
    with np.errstate(invalid="ignore", over="ignore"):
        cast = data.astype(dtype)
        # There and back, since NumPy would compare an integer of 64 bits with a float as two floats.
        is_same = (cast.astype(data.dtype) == data) & _is_within(data, dtype) & _is_within(cast, data.dtype)
    if is_same.all():
        return cast
    place = np.unravel_index(int(np.argmin(is_same)), data.shape)
    raise BadRequestError(
        f"input {name!r} is {given}, the model expects {wanted}, and {data[place]!s} at {[int(at) for at in place]} is "
        f"no {wanted}: send numbers that are, or as {wanted}"
    )


def _is_within(data: NDArray[Any], dtype: "np.dtype[Any]") -> "NDArray[np.bool_] | np.bool_":
    """Return which numbers are in a type's range: what is not may come back by chance."""
    if dtype.kind not in "iu":
        return np.bool_(True)
    limits = np.iinfo(dtype)
    if data.dtype.kind in "iu":
        low, high = max(limits.min, np.iinfo(data.dtype).min), min(limits.max, np.iinfo(data.dtype).max)
        return (data >= low) & (data <= high)
    # The upper limit of 64 bits is no float, and the next one is beyond it.
    return (data >= float(limits.min)) & (data < 2.0 ** (limits.bits - (dtype.kind == "i")))
