"""Datatypes of the Open Inference Protocol, and their binary form: row-major, little-endian."""

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.inference.errors import BadRequestError
from edge_client.inference.server.protocol import Data

NUMPY_TYPES = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
OF_TORCH = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""Datatypes by torch's names."""


def numpy_type(name: str, datatype: str) -> "np.dtype[Any]":
    """Return NumPy's type for a datatype.

    Raises:
        BadRequestError: it is unknown; the text names the tensor.

    """
    if datatype not in NUMPY_TYPES:
        raise BadRequestError(
            f"input {name!r}: datatype {datatype!r} is unknown; known are {', '.join(NUMPY_TYPES)}, BYTES"
        )
    return NUMPY_TYPES[datatype]


def count_elements(name: str, shape: Sequence[int]) -> int:
    """Return how many elements a shape has.

    Raises:
        BadRequestError: a dimension is negative.

    """
    if min(shape, default=0) < 0:
        raise BadRequestError(f"input {name!r}: shape {list(shape)} has a negative dimension")
    return math.prod(shape)


def from_binary(name: str, datatype: str, shape: Sequence[int], content: bytes | memoryview) -> Data:
    """Return a tensor of its binary form.

    Raises:
        BadRequestError: the form does not fit datatype and shape.

    """
    count = count_elements(name, shape)
    if datatype == "BYTES":
        return check_elements(name, shape, _split_elements(name, content))
    dtype = numpy_type(name, datatype)
    if len(content) != count * dtype.itemsize:
        raise BadRequestError(
            f"input {name!r}: {datatype} of shape {list(shape)} is {count * dtype.itemsize} bytes, not {len(content)}"
        )
    # A copy, since torch wants arrays that may be written to.
    return np.frombuffer(content, dtype).reshape(shape).copy()


def to_binary(datatype: str, data: Data) -> bytes:
    """Return the binary form of a tensor."""
    if isinstance(data, list):
        return b"".join(struct.pack("<I", len(element)) + element for element in data)
    return np.ascontiguousarray(data, NUMPY_TYPES[datatype]).tobytes()


def check_elements(name: str, shape: Sequence[int], elements: list[bytes]) -> list[bytes]:
    """Return elements of BYTES, if they are as many as a shape has.

    Raises:
        BadRequestError: they are not.

    """
    count = count_elements(name, shape)
    if len(elements) != count:
        raise BadRequestError(f"input {name!r}: its shape has {count} elements of BYTES, the data {len(elements)}")
    return elements


def from_values(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> NDArray[Any]:
    """Return a tensor of numbers from its values, flat or nested.

    Raises:
        BadRequestError: the values do not fit datatype and shape.

    """
    count = count_elements(name, shape)
    dtype = numpy_type(name, datatype)
    try:
        given = array_of(values)
    except TypeError:
        raise BadRequestError(f"input {name!r}: the data are not {datatype}") from None
    except (ValueError, OverflowError):
        raise BadRequestError(f"input {name!r}: the data are not numbers in rows of equal length") from None
    if given.size != count:
        raise BadRequestError(f"input {name!r}: shape {list(shape)} has {count} elements, the data {given.size}")
    if not count:
        return np.zeros(shape, dtype)
    if given.dtype.kind not in {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]:
        raise BadRequestError(f"input {name!r}: the data are not {datatype}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if given.min() < limits.min or given.max() > limits.max:
            raise BadRequestError(f"input {name!r}: {datatype} goes from {limits.min} to {limits.max}; the data do not")
    with np.errstate(over="ignore"):
        fitting = given.astype(dtype).reshape(shape)
    if dtype.kind == "f" and np.isinf(fitting).sum() > np.isinf(given).sum():
        limit = np.finfo(dtype).max
        raise BadRequestError(f"input {name!r}: {datatype} goes from {-limit:g} to {limit:g}; the data do not")
    return fitting


def array_of(values: Sequence[Any]) -> NDArray[Any]:
    """Return values, flat or nested, in the type that NumPy finds for them.

    Raises:
        ValueError, OverflowError, TypeError: they are texts, or rows of different lengths.

    """
    # NumPy would give each text as much room as the longest one needs.
    if isinstance(values, list) and _holds_texts(values):
        raise TypeError("texts are no numbers")
    return np.array(values)


def _holds_texts(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    return str in kinds or (list in kinds and any(_holds_texts(row) for row in values if isinstance(row, list)))


def _split_elements(name: str, content: bytes | memoryview) -> list[bytes]:
    elements, place = [], 0
    while place < len(content):
        end = place + 4
        length = struct.unpack_from("<I", content, place)[0] if end <= len(content) else 0
        if end > len(content) or end + length > len(content):
            raise BadRequestError(f"input {name!r}: the BYTES end within an element")
        elements.append(bytes(content[end : end + length]))
        place = end + length
    return elements
