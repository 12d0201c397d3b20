"""The stage that scales moves by how much the loss notices them, so that a codec of few bits keeps what counts.

With the curvature's diagonal h, an element's move d alone changes the loss by h d² / 2, so sqrt(h) d is what counts of
it, as in pruning by saliency (LeCun et al. 1989, "Optimal Brain Damage"). Second-order steps are the longest where h is
the smallest, and there a codec that keeps the largest d keeps what counts the least. But what is not kept is not lost,
only late, and the diagonal is that of a synthetic batch: halfway, h^(1/4) d, did best.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from edgenewton.v1.stage import Context, Float32Array, Stage
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.estimators import Statistics
from edge_client.exchange import TensorKey
from edge_client.sync.moves import MoveVector
from edge_client.sync.plan import Subject

_POWER = 0.25
_SMALLEST = 1e-6
"""Of the diagonal, in units of its mean."""


class MoveScaling(Stage[Float32Array, Float32Array]):
    """Linear, and the same on all devices, so that the mean of what they send is that of what they mean.

    Args:
        scales: gives the scale of each element of a vector; None for moves as they are.

    """

    name = "move scaling"
    takes_whole_tensors = True

    def __init__(self, scales: Callable[[], Float32Array | None]) -> None:
        self._scales = scales

    def encode(self, x: Float32Array, context: Context) -> Float32Array:  # noqa: ARG002
        """Return the scaled moves."""
        scales = self._scales()
        return x if scales is None else x * scales

    def decode(self, data: Float32Array, context: Context) -> Float32Array:  # noqa: ARG002
        """Undo `encode`."""
        scales = self._scales()
        return data if scales is None else data / scales


class MoveScales:
    """The scales of all vectors, found anew whenever the statistics that all devices know have changed.

    Args:
        subject: what is trained.
        vectors: its moves.
        in_common: gives the statistics that all devices know; another object if they have changed.

    """

    def __init__(
        self,
        subject: Subject,
        vectors: Iterable[MoveVector],
        in_common: Callable[[], Mapping[str, Statistics]],
    ) -> None:
        self._subject = subject
        self._vectors = {vector.key: vector for vector in vectors}
        self._in_common = in_common
        self._known: Mapping[str, Statistics] = {}
        self._scales: dict[TensorKey, Float32Array] = {}

    def stages(self, spec: TensorSpec) -> Sequence[Stage[Float32Array, Float32Array]]:
        """Return the stages before the codec of a tensor: of a vector of moves, its scaling."""
        key = spec.kind, spec.name
        return (MoveScaling(lambda: self.of(key)),) if key in self._vectors else ()

    def of(self, key: TensorKey) -> Float32Array | None:
        """Return the scales of a vector's elements, flat; None while nothing is known in common."""
        known = self._in_common()
        if known is not self._known:
            self._known = known
            diagonals = _diagonals(self._subject, known)
            vectors = self._vectors if diagonals else {}
            self._scales = {key: _scales(vector, diagonals) for key, vector in vectors.items()}
        return self._scales.get(key)


@torch.no_grad()
def _diagonals(subject: Subject, statistics: Mapping[str, Statistics]) -> dict[str, Tensor]:
    """Return the curvature's diagonal in each layer that has one, float64 `[blocks, out, in]`, in units of its mean."""
    diagonals: dict[str, Tensor] = {}
    for state in subject.layers:
        if statistics.get(state.name):
            estimator = type(state.estimator)(state.estimator.shape, state.estimator.options)
            # What the statistics do not tell, an estimator takes from the gradient; here there is none.
            estimator.update(statistics[state.name], state.layer.weight.new_zeros(state.layer.shape.of_gradient))
            diagonal = estimator.diagonal()
            if diagonal is not None:
                diagonals[state.name] = diagonal.expand(state.layer.shape.of_gradient).cpu().double()
    total = sum(float(diagonal.sum()) for diagonal in diagonals.values())
    if not 0 < total < math.inf:
        return {}
    mean = total / sum(diagonal.numel() for diagonal in diagonals.values())
    return {name: diagonal / mean for name, diagonal in diagonals.items()}


def _scales(vector: MoveVector, diagonals: Mapping[str, Tensor]) -> Float32Array:
    """Return the scales of a vector; what is no layer with a diagonal is taken to have the mean curvature."""
    scales = torch.ones(sum(vector.sizes))
    for part, of_part in zip(vector.parts, torch.split(scales, vector.sizes), strict=True):
        if part.layer is not None and part.name in diagonals:
            of_part.copy_(diagonals[part.name].clamp(min=_SMALLEST).pow(_POWER).reshape(-1))
    flat: Float32Array = scales.numpy()
    return flat
