"""What describes a tensor that is exchanged. Plain Python: who only describes tensors loads no protobuf."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that may be exchanged: kind and name identify it, shape and dtype describe it."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    """As torch names it, without "torch."."""
    kind: str = "gradient"
    """gradient, parameter, curvature, delta, weight or noised."""
    parts: "tuple[TensorSpec, ...]" = ()
    """Of what it consists, one after the other, if it is a vector of several tensors of its kind."""
    structure: str = ""
    """What its elements stand for: "triangles" for those of symmetric positive semi-definite matrices, `[..., n (n + 1)
    / 2]`, whose upper triangles they are, row by row; "diagonals" for elements that cannot be negative; or nothing."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        structure = f", {self.structure}" if self.structure else ""
        return f"{self.kind} of {self.name!r}, {' x '.join(map(str, self.shape)) or 'scalar'} {self.dtype}{structure}"


def matrix_size(elements: int) -> int | None:
    """Return the rows n of a matrix whose upper triangle has n (n + 1) / 2 elements; None if there is none."""
    size = (math.isqrt(8 * elements + 1) - 1) // 2
    return size if size and size * (size + 1) // 2 == elements else None
