"""Requests and responses of the Open Inference Protocol v2, whichever way they came."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Data = NDArray[Any] | list[bytes]
"""A tensor's elements: an array of its shape, or for BYTES the elements in row-major order."""


class InputTensor(NamedTuple):
    """One tensor of a request."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data


class RequestedOutput(NamedTuple):
    """An output that the client asks for."""

    name: str
    class_count: int = 0
    """If not 0: instead of the numbers, the so many best classes as texts "0.93:3:three" (Triton's classification)."""


class InferRequest(NamedTuple):
    """A request for inference."""

    model: str
    version: str
    """Empty for whichever version serves."""
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    """Empty for all."""
    id: str = ""
    timeout_s: float | None = None


class OutputTensor(NamedTuple):
    """One tensor of a response."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data


class InferResponse(NamedTuple):
    """What a model answered."""

    model: str
    version: str
    id: str
    outputs: tuple[OutputTensor, ...]
    text_bytes: int = 0
    """How long it may be as text, about."""


@dataclass(frozen=True)
class TensorMetadata:
    """Name, type and shape of an input or output; -1 for a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What a client must know of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True)
class ServerMetadata:
    """What the server is."""

    name: str
    version: str
    extensions: tuple[str, ...] = (
        "classification",
        "binary_tensor_data",
        "model_repository",
        "model_repository(unload_dependents)",
        "model_configuration",
        "statistics",
        "parameters",
    )
    """By Triton's names."""


def text_elements(array: "NDArray[np.str_] | list[str]") -> list[bytes]:
    """Return texts as elements of BYTES."""
    return [str(text).encode() for text in array]
