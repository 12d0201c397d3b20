"""Gradient matching: images are sought whose gradient points where the one that was seen does.

Geiping et al. 2020 (arXiv:2003.14053): the cosine distance with a prior of total variation, Adam with the signs of the
gradient, a rate that falls. The attacker is told the labels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.privacy.fleet import Run, digits, mean_image
from benchmarks.privacy.layers import gradients
from edge_client.exchange import TensorKey

ITERATIONS = 200
_RATE = 0.1
_VARIATION = 1e-3


def matched(run: Run, seen: Mapping[TensorKey, Tensor], labels: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Return images `[n, 1, 8, 8]` for the labels `[n]` whose gradient suits what was seen."""
    model = run.model.float()
    parameters = dict(model.named_parameters())
    of = gradients(run, seen)
    targets = [of[name].float() for name in parameters]
    size = torch.stack([target.square().sum() for target in targets]).sum().sqrt()
    generator = torch.Generator().manual_seed(0)
    mean = mean_image()
    images = (mean + 0.1 * torch.randn(len(labels), *mean.shape, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([images], _RATE)
    milestones = [int(part * iterations) for part in (0.375, 0.625, 0.875)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    best, least = images.detach().clone(), float("inf")
    for _ in range(iterations):
        loss = digits().loss(model(images), labels)
        found = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        product = torch.stack([(one * other).sum() for one, other in zip(found, targets, strict=True)]).sum()
        norm = torch.stack([one.square().sum() for one in found]).sum().sqrt()
        distance = 1 - product / (norm * size + 1e-12)
        if distance.item() < least:
            best, least = images.detach().clone(), distance.item()
        (slope,) = torch.autograd.grad(distance + _VARIATION * _total_variation(images), images)
        images.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(-1, 1)
    return best


def _total_variation(images: Tensor) -> Tensor:
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()
