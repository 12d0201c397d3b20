"""The model fingerprint: names, shapes, dtypes and kinds of the tensors that a session exchanges."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.tensor_spec import TensorSpec, matrix_size

DTYPES: dict[str, pb.DType] = {
    "float32": pb.DTYPE_FLOAT32,
    "float64": pb.DTYPE_FLOAT64,
    "float16": pb.DTYPE_FLOAT16,
    "bfloat16": pb.DTYPE_BFLOAT16,
}
_DTYPE_NAMES = {number: name for name, number in DTYPES.items()}

KINDS: dict[str, pb.TensorKind] = {
    "gradient": pb.TENSOR_KIND_GRADIENT,
    "parameter": pb.TENSOR_KIND_PARAMETER,
    "curvature": pb.TENSOR_KIND_CURVATURE,
    "delta": pb.TENSOR_KIND_DELTA,
    "weight": pb.TENSOR_KIND_WEIGHT,
    "noised": pb.TENSOR_KIND_NOISED,
}
_KIND_NAMES = {number: name for name, number in KINDS.items()}

FROZEN_OPTION = "frozen_weights"
"""The option that digests frozen weights: to the last bit, which is more than machines of different kinds agree in."""

STRUCTURES: dict[str, pb.TensorStructure] = {
    "": pb.TENSOR_STRUCTURE_UNSPECIFIED,
    "triangles": pb.TENSOR_STRUCTURE_TRIANGLES,
    "diagonals": pb.TENSOR_STRUCTURE_DIAGONALS,
}
_STRUCTURE_NAMES = {number: name for name, number in STRUCTURES.items()}

MAX_ELEMENTS = 1 << 34
"""Largest tensor that a fingerprint may announce; a lie beyond it would exhaust the receiver's memory."""


def spec_to_proto(spec: TensorSpec) -> pb.TensorSpec:
    """Return the message for the wire."""
    return pb.TensorSpec(
        name=spec.name,
        shape=spec.shape,
        dtype=DTYPES[spec.dtype],
        kind=KINDS[spec.kind],
        parts=[spec_to_proto(part) for part in spec.parts],
        structure=STRUCTURES[spec.structure],
    )


def spec_from_proto(message: pb.TensorSpec) -> TensorSpec:
    """Return the spec in a message.

    Raises:
        ValueError: dtype, kind or structure is unknown, the shape is absurd, or it is not what its parts make up; the
            text names the tensor.

    """
    spec = _bare_spec(message)
    if not message.parts:
        return spec
    parts = tuple(_bare_spec(part) for part in message.parts)
    if any(part.kind != spec.kind for part in parts) or any(part.parts for part in message.parts):
        raise ValueError(f"a part of the {spec} has parts of its own, or is of another kind")
    if (sum(part.size for part in parts),) != spec.shape:
        raise ValueError(f"the {spec} is no vector of the {sum(part.size for part in parts)} elements of its parts")
    return replace(spec, parts=parts)


def _bare_spec(message: pb.TensorSpec) -> TensorSpec:
    if message.dtype not in _DTYPE_NAMES or message.kind not in _KIND_NAMES:
        raise ValueError(
            f"tensor {message.name!r} has dtype {message.dtype} and kind {message.kind}; "
            f"known are {', '.join(DTYPES)} and {', '.join(KINDS)}"
        )
    if message.structure not in _STRUCTURE_NAMES:
        raise ValueError(
            f"tensor {message.name!r} has structure {message.structure}; {list(_STRUCTURE_NAMES)} are known"
        )
    structure = _STRUCTURE_NAMES[message.structure]
    spec = TensorSpec(
        message.name,
        tuple(message.shape),
        _DTYPE_NAMES[message.dtype],
        _KIND_NAMES[message.kind],
        structure=structure,
    )
    if structure == "triangles" and (not spec.shape or matrix_size(spec.shape[-1]) is None):
        raise ValueError(f"the {spec} holds no upper triangles: its last dimension is not n (n + 1) / 2")
    if spec.size > MAX_ELEMENTS:
        raise ValueError(f"the {spec} is larger than {MAX_ELEMENTS} elements")
    return spec


def fingerprint_from_proto(messages: Iterable[pb.TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the fingerprint in a `JoinRequest`.

    Raises:
        ValueError: it is empty, names a tensor twice, or a spec is wrong.

    """
    specs = tuple(spec_from_proto(message) for message in messages)
    if not specs:
        raise ValueError("the model has no tensors to exchange")
    seen: set[tuple[str, str]] = set()
    for spec in specs:
        if (spec.kind, spec.name) in seen:
            raise ValueError(f"the {spec} is named twice")
        seen.add((spec.kind, spec.name))
    return specs


def model_fingerprint(specs: Iterable[TensorSpec], options: Mapping[str, str]) -> str:
    """Return the SHA-256, in hexadecimal digits, of a model's tensors and of the options that all devices share.

    Frozen weights have no part in it: they may differ by rounding.
    """
    shared = sorted((name, value) for name, value in options.items() if name != FROZEN_OPTION)
    return hashlib.sha256(json.dumps([[_plain(spec) for spec in specs], shared]).encode()).hexdigest()


def _plain(spec: TensorSpec) -> list[object]:
    return [spec.kind, spec.name, spec.dtype, list(spec.shape), [_plain(part) for part in spec.parts]]


def first_difference(ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> str | None:
    """Return a phrase that names the first tensor, or part of one, in which `theirs` differs from `ours`, or None."""
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            of_parts = first_difference(mine.parts, other.parts) if mine.parts and other.parts else None
            return of_parts or f"the session has the {mine} where this device has the {other}"
    if len(ours) > len(theirs):
        return f"the session has the {ours[len(theirs)]}, which this device lacks"
    if len(theirs) > len(ours):
        return f"this device has the {theirs[len(ours)]}, which the session lacks"
    return None


def first_option_difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """Return a phrase that names the first option in which `theirs` differs from `ours`, or None."""
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return (
                f"option {name!r} is {ours.get(name, 'not set')} in the session "
                f"but {theirs.get(name, 'not set')} on this device"
            )
    return None
