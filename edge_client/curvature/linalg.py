"""Linear algebra on batches of symmetric matrices that never gives a NaN: packing, decomposition, damped inverse.

What fails climbs a ladder, and `CurvatureError` is at its end: the matrix as it is; in float64; in float64 with its
diagonal raised, by 1e-6 of the mean eigenvalue first and then by tenfold steps up to all of it. Where a kind of device
has no float64, or lacks a decomposition, the CPU does it.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

WITHOUT_FLOAT64 = {"mps"}
"""Kinds of devices."""
_RAISES = tuple(10.0**exponent for exponent in range(-6, 1))


class CurvatureError(ArithmeticError):
    """A curvature matrix could not be inverted, whatever was tried."""


@lru_cache(maxsize=256)
def _triangle(size: int, device: str) -> Tensor:
    """Return where the elements of the upper triangle stand in a matrix, row by row."""
    rows, columns = torch.triu_indices(size, size)  # not every kind of device has it
    positions: Tensor = rows * size + columns
    return positions.int().to(device)  # half the bytes to read: they are as many as the elements


@lru_cache(maxsize=256)
def _from_triangle(size: int, device: str) -> Tensor:
    """Return where each element of a symmetric matrix stands in its packed upper triangle."""
    packed = torch.arange(packed_size(size), device=device, dtype=torch.int32)
    positions = packed.new_zeros(size * size)
    positions[_triangle(size, device).long()] = packed
    upper = positions.view(size, size)
    return torch.maximum(upper, upper.mT).flatten()


def packed_size(size: int) -> int:
    """Return how many elements the upper triangle of a matrix of `size` rows has."""
    return size * (size + 1) // 2


def pack_symmetric(matrix: Tensor) -> Tensor:
    """Return the upper triangles of symmetric matrices `[..., n, n]` row by row, `[..., n (n + 1) / 2]`."""
    return matrix.flatten(-2).index_select(-1, _triangle(matrix.shape[-1], str(matrix.device)))


def unpack_symmetric(packed: Tensor, size: int) -> Tensor:
    """Return the symmetric matrices `[..., size, size]` whose upper triangles `pack_symmetric` gave."""
    matrix = packed.index_select(-1, _from_triangle(size, str(packed.device)))
    return matrix.view(*packed.shape[:-1], size, size)


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its own device knows no such numbers."""
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    # The sum decides nearly always, in one pass; it may overflow itself.
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (clamped to at least 0) and eigenvectors of positive semi-definite matrices.

    Args:
        matrix: `[..., n, n]`, symmetric up to rounding.

    Returns:
        Eigenvalues `[..., n]`, ascending, and eigenvectors in columns, `[..., n, n]`, in the dtype of `matrix`.

    Raises:
        CurvatureError: the matrix holds NaN or infinity, or all attempts fail.

    """
    values, vectors = _climb(matrix, torch.linalg.eigh, lambda pair: all(map(is_finite, pair)))
    return values.clamp(min=0).to(matrix), vectors.to(matrix)


def lower_root(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factors M of positive definite matrices, M M^T.

    Args:
        matrix: `[..., n, n]`, symmetric up to rounding.

    Raises:
        CurvatureError: the matrix holds NaN or infinity, or all attempts fail.

    """
    root: Tensor = _climb(matrix, torch.linalg.cholesky, is_finite).to(matrix)
    return root


def damped_inverse(matrix: Tensor, damping: Tensor) -> Tensor:
    """Return (matrix + damping I)^-1 of positive semi-definite matrices.

    Args:
        matrix: `[..., n, n]`, symmetric up to rounding.
        damping: `[...]`, at least 0.

    Returns:
        `[..., n, n]`, in the dtype of `matrix`.

    Raises:
        CurvatureError: the matrix holds NaN or infinity, or all attempts fail.

    """
    if not is_finite(damping):
        raise CurvatureError("the damping is not finite")
    return _climb(matrix, lambda candidate: _damped_inverse(candidate, damping), is_finite).to(matrix)


def _damped_inverse(matrix: Tensor, damping: Tensor) -> Tensor:
    # In one place, with columns one after the other as LAPACK wants them: new memory for each step of a large matrix
    # takes a third of the time.
    inverse = matrix.clone(memory_format=torch.contiguous_format).mT
    inverse.diagonal(dim1=-2, dim2=-1).add_(damping.unsqueeze(-1).to(matrix))
    torch.linalg.cholesky(inverse, out=inverse)
    return torch.cholesky_inverse(inverse, out=inverse).mT


def _climb(matrix: Tensor, attempt: Callable[[Tensor], T], is_good: Callable[[T], bool]) -> T:
    if not is_finite(matrix):
        raise CurvatureError("the matrix has values that are not finite")
    for candidate in _ladder(matrix):
        try:
            result = attempt(candidate)
        except RuntimeError:  # torch's LinAlgError is one
            continue
        if is_good(result):
            return result
    size = matrix.shape[-1]
    raise CurvatureError(f"a {size} x {size} matrix cannot be inverted, however much it is damped")


def _ladder(matrix: Tensor) -> Iterator[Tensor]:
    yield matrix  # of which all decompositions read one triangle alone
    double = precise(matrix)
    double = (double + double.mT) / 2
    yield double
    mean = double.diagonal(dim1=-2, dim2=-1).mean(dim=-1).abs()[..., None, None]
    unit = torch.eye(double.shape[-1], dtype=torch.float64, device=double.device)
    for part in _RAISES:
        yield double + part * mean * unit
