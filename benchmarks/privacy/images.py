"""From inputs of the first fully connected layer to images: for the CNN, images are sought whose features are these."""

import torch
from torch import Tensor, nn

from benchmarks.privacy.fleet import mean_image
from benchmarks.privacy.layers import LAYER
from benchmarks.privacy.spans import Matrix

_STARTS = 4
_ROUNDS = 12
_ITERATIONS = 25
"""Of L-BFGS in a round; a start that is far behind is given up after each."""


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the inputs of the layer, `[n, features]`."""
    for name, layer in model.named_children():
        if name == LAYER:
            return images
        images = layer(images)
    raise ValueError(f"the model has no layer {LAYER!r}")


def images_with(model: nn.Module, features: Matrix) -> Tensor:
    """Return images `[n, 1, 8, 8]` with given inputs of the layer, or the first of them, `[n, at most features]`."""
    wanted = torch.from_numpy(features).double()
    if not any(isinstance(layer, nn.Conv2d) for layer in model.children()):
        return wanted.view(-1, 1, 8, 8).float() if len(wanted) else torch.zeros(0, 1, 8, 8)
    model = model.double()
    found = [_sought(model, features) for features in wanted]
    model.float()
    return torch.stack(found).float() if found else torch.zeros(0, 1, 8, 8)


def _sought(model: nn.Module, wanted: Tensor) -> Tensor:
    """Return the image `[1, 8, 8]` whose features come nearest, of some starts."""
    generator = torch.Generator().manual_seed(0)
    mean = mean_image().double()
    starts = mean + 0.3 * torch.randn(_STARTS, *mean.shape, generator=generator, dtype=torch.float64)
    starts[0] = mean
    best, least = mean, float("inf")
    for start in starts:
        image = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([image], max_iter=_ITERATIONS, line_search_fn="strong_wolfe", history_size=20)

        def loss(image: Tensor = image, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            error = (features_of(model, image.unsqueeze(0))[0, : len(wanted)] - wanted).square().sum()
            outside = (image.abs() - 1).clamp(min=0).square().sum()
            total = error + outside
            total.backward()  # type: ignore[no-untyped-call]
            return total

        error = float("inf")
        for _ in range(_ROUNDS):
            before, error = error, optimizer.step(loss).item()  # type: ignore[no-untyped-call]
            if not error < 0.9 * before or error < 1e-24:
                break
        error = loss().item()
        if error < least:
            best, least = image.detach().clone(), error
        if least < 1e-12 * float(wanted.square().sum()):
            break
    return best
