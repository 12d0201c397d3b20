"""The stage that writes a layer's gradient so that the curvature that all devices share is the unit matrix."""

from collections.abc import Callable, Sequence

import torch
from edgenewton.v1.stage import Context, Float32Array, Stage
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.whitening import Whitening, restore_gradient, whiten_gradient
from edge_client.sync.parts import Part


class WhiteningStage(Stage[Float32Array, Float32Array]):
    """Linear, and the same on all devices, so that the mean of what they send is that of what they mean.

    Args:
        whitening: gives the layer's coordinates; None for those of the parameters themselves.

    """

    name = "whitening"
    takes_whole_tensors = True

    def __init__(self, whitening: Callable[[], Whitening | None]) -> None:
        self._whitening = whitening

    def encode(self, x: Float32Array, context: Context) -> Float32Array:
        """Return the matrices `[blocks, out, in]`, flat, in the layer's coordinates."""
        return self._mapped(whiten_gradient, x, context)

    def decode(self, data: Float32Array, context: Context) -> Float32Array:
        """Undo `encode`."""
        return self._mapped(restore_gradient, data, context)

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
    spec: TensorSpec, parts: Sequence[Part], whitening: Callable[[str], Whitening | None]
) -> Sequence[Stage[Float32Array, Float32Array]]:
    """Return the stages before the codec of a tensor: for the gradient of a layer, its whitening."""
    is_layer = any(part.name == spec.name and part.layer is not None for part in parts)
    if spec.kind != "gradient" or not is_layer:
        return ()
    return (WhiteningStage(lambda: whitening(spec.name)),)
