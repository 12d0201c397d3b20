"""The analytic attacks on what a coordinator sees of a device: from the first layer's gradient, from its factor A."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from benchmarks.privacy.fleet import Run
from benchmarks.privacy.images import images_with
from benchmarks.privacy.layers import factor_of_layer, gradients, rows_of_layer
from benchmarks.privacy.spans import inputs_from_factor, inputs_from_rows
from edge_client.exchange import TensorKey

_MOST_FEATURES = 100.0
"""No feature of the networks here is larger; it bounds the polytope."""
_MOST_SOUGHT = 32
"""Images that are sought for features, the likeliest first."""


def from_gradient(run: Run, seen: Mapping[TensorKey, Tensor], count: int) -> Tensor:
    """Return images `[at most count, 1, 8, 8]` that the gradient of the layer, or its move, tells of."""
    rows = rows_of_layer(gradients(run, seen))
    low, high = _bounds(run)
    rng = np.random.default_rng(0)
    found = inputs_from_rows(rows, count, low=low, high=high, unit=rows.shape[1] - 1, rng=rng)
    return images_with(run.model, found[:_MOST_SOUGHT, :-1])


def from_factor(run: Run, seen: Mapping[TensorKey, Tensor], count: int) -> Tensor | None:
    """Return images that the layer's factor A tells of, as `from_gradient`; None if none was sent."""
    parts = factor_of_layer(seen)
    if parts is None:
        return None
    factor = parts[0].numpy()
    low, high = _bounds(run)
    # A factor in several parts has the bias' element in the last; the first has features enough for an image.
    unit = len(factor) - 1 if len(parts) == 1 else None
    found = inputs_from_factor(factor, count, low=low, high=high, unit=unit, rng=np.random.default_rng(0))
    return images_with(run.model, found[:_MOST_SOUGHT, :unit])


def _bounds(run: Run) -> tuple[float, float]:
    """Return between what the inputs of the layer are: pixels are from -1 to 1, features come from a ReLU."""
    sees_pixels = next(run.model.named_children())[0] == "flatten"
    return (-1.0, 1.0) if sees_pixels else (0.0, _MOST_FEATURES)
