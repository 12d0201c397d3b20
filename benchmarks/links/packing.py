"""What a baseline's tensors travel as: the small ones joined to one, which is compressed like a large one.

Otherwise the small ones would take most of the bytes of a model whose matrices take a bit or less for an element; the
frontier benchmark counts its baselines' bytes in the same way.
"""

from collections.abc import Mapping, Sequence

import torch
from edgenewton.v1.codecs.plain import WORTH_IT
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

_JOINED = "small tensors"


class Packing:
    """Names and shapes of the tensors that devices exchange.

    Args:
        kind: of the exchange's tensors, "gradient" or "delta".
        like: tensors of the shapes that are exchanged, by name.

    """

    def __init__(self, kind: str, like: Mapping[str, Tensor]) -> None:
        self._kind = kind
        self._shapes = {name: tuple(tensor.shape) for name, tensor in like.items()}
        self._sizes = {name: tensor.numel() for name, tensor in like.items() if tensor.numel() < WORTH_IT}

    def specs(self) -> list[TensorSpec]:
        """Return what travels."""
        whole = [TensorSpec(name, s, kind=self._kind) for name, s in self._shapes.items() if name not in self._sizes]
        joined = TensorSpec(_JOINED, (sum(self._sizes.values()),), kind=self._kind)
        return [*whole, joined] if self._sizes else whole

    def pack(self, tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        """Return what travels, by its key."""
        packed = {(self._kind, name): tensors[name] for name in self._shapes if name not in self._sizes}
        if self._sizes:
            packed[self._kind, _JOINED] = torch.cat([tensors[name].flatten() for name in self._sizes])
        return packed

    def unpack(self, came: Mapping[tuple[str, str], Tensor]) -> dict[str, Tensor]:
        """Undo `pack`."""
        tensors = {name: came[self._kind, name] for name in self._shapes if name not in self._sizes}
        if self._sizes:
            parts: Sequence[Tensor] = torch.split(came[self._kind, _JOINED], list(self._sizes.values()))
            small = dict(zip(self._sizes, parts, strict=True))
            tensors |= {name: part.view(self._shapes[name]) for name, part in small.items()}
        return tensors
