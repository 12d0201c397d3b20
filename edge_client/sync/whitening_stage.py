"""The stage that writes a layer's moves in the coordinates in which the common curvature is the unit matrix."""

from collections.abc import Callable, Sequence

import torch
from edgenewton.v1.codecs import Context, Float32Array, Stage
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.whitening import Whitening, restore_step, whiten_step


class WhiteningStage(Stage[Float32Array, Float32Array]):
    """Linear, and the same on all devices, so that the mean of what they send is that of their moves.

    Args:
        whitening: gives the layer's coordinates; None for those of the parameters themselves.

    """

    name = "whitening"
    takes_whole_tensors = True

    def __init__(self, whitening: Callable[[], Whitening | None]) -> None:
        self._whitening = whitening

    def encode(self, x: Float32Array, context: Context) -> Float32Array:
        """Return the moves `[blocks, out, in]`, flat, in the layer's coordinates."""
        return self._mapped(whiten_step, x, context)

    def decode(self, data: Float32Array, context: Context) -> Float32Array:
        """Undo `encode`."""
        return self._mapped(restore_step, data, context)

    def _mapped(
        self, function: Callable[[Tensor, Whitening], Tensor], x: Float32Array, context: Context
    ) -> Float32Array:
        by = self._whitening()
        if by is None:
            return x
        values = torch.from_numpy(x if x.flags.writeable else x.copy()).view(context.spec.shape)
        mapped = function(values.to(by.G), by)
        flat: Float32Array = mapped.float().cpu().contiguous().view(-1).numpy()
        return flat


def whitening_stages(
    spec: TensorSpec, of_layers: Sequence[str], whitening: Callable[[str], Whitening | None]
) -> Sequence[Stage[Float32Array, Float32Array]]:
    """Return the stages before the codec of a tensor: for the moves of a layer, its whitening."""
    if spec.kind != "delta" or spec.name not in of_layers:
        return ()
    return (WhiteningStage(lambda: whitening(spec.name)),)
