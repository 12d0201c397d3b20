"""A network's gradients, and the factors of its first fully connected layer, in what a session's tensors hold."""

from collections.abc import Mapping

import numpy as np
import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor, nn

from benchmarks.privacy.fleet import Run
from benchmarks.privacy.spans import Matrix
from edge_client.curvature.linalg import unpack_symmetric
from edge_client.curvature.whitening import Whitening, restore_gradient
from edge_client.exchange import TensorKey

LAYER = "hidden"
"""The first fully connected layer of either network."""


def gradients(run: Run, seen: Mapping[TensorKey, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of each parameter, or what it was moved by in a round, by its name.

    Args:
        run: whose whitening is undone.
        seen: the session's tensors.

    """
    found: dict[str, Tensor] = {}
    for (kind, name), value in seen.items():
        if kind in ("gradient", "noised"):  # no attack minds the noise's grid, which is a scale
            found |= _of_part(run.model, name, _restored(value, run.whitening.get(name)))
        elif kind == "delta":
            spec = next(spec for spec in run.fingerprint if (spec.kind, spec.name) == (kind, name))
            parts: tuple[TensorSpec, ...] = spec.parts or (TensorSpec(name, spec.shape, kind="delta"),)
            for part, piece in zip(parts, torch.split(value.flatten(), [part.size for part in parts]), strict=True):
                found |= _of_part(run.model, part.name, piece.view(part.shape))
    return found


def rows_of_layer(of_parameters: Mapping[str, Tensor]) -> Matrix:
    """Return the gradient of the layer's weight and bias side by side, `[out, in + 1]`."""
    weight, bias = of_parameters[f"{LAYER}.weight"], of_parameters[f"{LAYER}.bias"]
    return np.hstack([weight.double().numpy(), bias.double().numpy()[:, None]])


def factor_of_layer(seen: Mapping[TensorKey, Tensor]) -> Tensor | None:
    """Return the layer's factor A, `[parts, n, n]`; None if it was not sent."""
    packed = seen.get(("curvature", f"{LAYER}:A"))
    if packed is None:
        return None
    size = int(((8 * packed.shape[-1] + 1) ** 0.5 - 1) / 2)
    return unpack_symmetric(packed.double(), size)


def _restored(value: Tensor, whitening: Whitening | None) -> Tensor:
    return value if whitening is None else restore_gradient(value, whitening)


def _of_part(model: nn.Module, name: str, value: Tensor) -> dict[str, Tensor]:
    """Return a parameter's tensor, or those of a layer whose matrix `[1, out, in + 1]` holds weight and bias."""
    parameters = dict(model.named_parameters())
    if name in parameters:
        return {name: value.view(parameters[name].shape)}
    weight, bias = f"{name}.weight", f"{name}.bias"
    return {
        weight: value[..., :-1].reshape(parameters[weight].shape),
        bias: value[..., -1].reshape(parameters[bias].shape),
    }
