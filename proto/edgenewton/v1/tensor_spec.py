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
    """gradient, parameter, curvature, delta or weight."""
    parts: "tuple[TensorSpec, ...]" = ()
    """Of what it consists, one after the other, if it is a vector of several tensors of its kind."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind} of {self.name!r}, {' x '.join(map(str, self.shape)) or 'scalar'} {self.dtype}"
