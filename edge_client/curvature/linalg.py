"""Linear algebra on symmetric matrices that never fails: packing, and an eigendecomposition with a ladder."""

from functools import lru_cache

import torch
from torch import Tensor


class CurvatureError(ArithmeticError):
    """A curvature matrix could not be decomposed, whatever was tried."""


@lru_cache(maxsize=256)
def _triangle(size: int, device: str) -> Tensor:
    rows, columns = torch.triu_indices(size, size, device=device)
    positions: Tensor = rows * size + columns
    return positions


def pack_symmetric(matrix: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix.

    Args:
        matrix: [n, n].

    Returns:
        [n (n + 1) / 2], row by row.

    """
    size = matrix.shape[0]
    return matrix.reshape(-1)[_triangle(size, str(matrix.device))]


def unpack_symmetric(packed: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix [size, size] whose upper triangle `pack_symmetric` gave."""
    matrix = packed.new_zeros(size * size)
    matrix[_triangle(size, str(packed.device))] = packed
    matrix = matrix.view(size, size)
    return matrix + matrix.triu(1).T


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (clamped to at least 0) and eigenvectors of a positive semi-definite matrix.

    Tries, in this order: the matrix as it is; in float64; in float64 with its diagonal raised by 1e-6 of the mean.

    Args:
        matrix: [n, n], symmetric up to rounding.

    Returns:
        Eigenvalues [n], ascending, and eigenvectors [n, n] in columns, in the dtype of `matrix`.

    Raises:
        CurvatureError: the matrix holds NaN or infinity, or all attempts fail.

    """
    if not matrix.isfinite().all():
        raise CurvatureError("the matrix has values that are not finite")
    symmetric = (matrix + matrix.T) / 2
    double = symmetric.double()
    raised = double + 1e-6 * double.diagonal().mean().abs() * torch.eye(len(double), dtype=torch.float64)
    for attempt in (symmetric, double, raised):
        try:
            values, vectors = torch.linalg.eigh(attempt)
        except RuntimeError:  # torch's LinAlgError is one
            continue
        if values.isfinite().all() and vectors.isfinite().all():
            return values.clamp(min=0).to(matrix.dtype), vectors.to(matrix.dtype)
    raise CurvatureError(f"the eigendecomposition of a {len(matrix)} x {len(matrix)} matrix does not converge")
