"""Membership inference on a final model: was an image trained with? By the loss, and by the likelihood ratio of losses.

The first is that of Yeom et al. 2018 (arXiv:1709.01604); the second LiRA's offline form (Carlini et al. 2022,
arXiv:2112.03570): an image's confidence under the model, against how confident models are that never saw it.
"""

from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.privacy.fleet import DEVICES, digits, images, make, watched_training
from benchmarks.privacy.modes import Mode
from edge_client import NewtonOptimizer
from edge_client.tasks import Partition, Samples
from edge_client.tasks.data import in_memory

POOL = 480
"""Images that may have been trained with, of which each model was with half."""
STEPS = 60
SHADOWS = 8


@dataclass(frozen=True)
class Membership:
    """How well members are told from others: areas under the ROC curve, 0.5 of a coin."""

    loss_auc: float
    ratio_auc: float
    accuracy: float
    """Of the model, on held-out images."""


@dataclass(frozen=True)
class Shadows:
    """What models that were trained alike say of the pool's images."""

    confidences: Tensor
    """`[models, POOL]`, as the logit of the probability of the true class."""
    members: Tensor
    """Which images each was trained with, bool `[models, POOL]`."""


def pool() -> Samples:
    """Return the images in question."""
    whole = images()
    return Samples(whole.inputs[:POOL], whole.targets[:POOL])


def members_of(seed: int) -> Tensor:
    """Return which images of the pool a model is trained with, bool `[POOL]`: half of them.

    That of an odd seed has those that the one before has not.
    """
    order = torch.randperm(POOL, generator=torch.Generator().manual_seed(1_000 + seed // 2))
    chosen = torch.zeros(POOL, dtype=torch.bool)
    chosen[order[: POOL // 2]] = True
    return ~chosen if seed % 2 else chosen


def shadows(network: str, count: int = SHADOWS, steps: int = STEPS) -> Shadows:
    """Train an even number of models as an attacker would who has such images, on one machine."""
    members = torch.stack([members_of(seed) for seed in range(2, 2 + count)])
    return Shadows(torch.stack([confidences(_shadow(network, own, steps)) for own in members]), members)


def infer(mode: Mode, network: str, known: Shadows, steps: int = STEPS) -> Membership:
    """Let devices train in a mode, and tell from the final model who was trained with."""
    own = members_of(0)
    inside = Samples(pool().inputs[own], pool().targets[own])
    size = len(inside) // DEVICES

    def batch(device: int, number: int) -> Samples:  # noqa: ARG001
        of = slice(device * size, (device + 1) * size)
        return Samples(inside.inputs[of], inside.targets[of])

    run = watched_training(mode, lambda: make(network), batch, size, steps)
    found = confidences(run.trained)
    outside = torch.where(known.members, torch.nan, known.confidences)
    usual = outside.nanmean(0)
    spread = (outside - usual).square().nanmean().sqrt()
    held_out = in_memory(digits(), digits().test_data(Partition()))
    with torch.no_grad():
        right = run.trained(held_out.inputs).argmax(1) == held_out.targets
    return Membership(_auc(own, found), _auc(own, (found - usual) / spread), float(right.float().mean()))


def confidences(model: nn.Module) -> Tensor:
    """Return the logit of the probability of each pool image's class, `[POOL]`; it falls as the loss grows."""
    asked = pool()
    with torch.no_grad():
        scores = model.eval()(asked.inputs).double()
    own = scores.gather(1, asked.targets[:, None])[:, 0]
    others = scores.scatter(1, asked.targets[:, None], -torch.inf).logsumexp(1)
    logits: Tensor = own - others
    return logits


def _shadow(network: str, own: Tensor, steps: int) -> nn.Module:
    model = make(network)
    optimizer = NewtonOptimizer(model)
    inside = Samples(pool().inputs[own], pool().targets[own])
    for _ in range(steps):
        optimizer.zero_grad()
        loss = digits().loss(model(inside.inputs), inside.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    bare = make(network)
    bare.load_state_dict(model.state_dict())
    return bare


def _auc(own: Tensor, scores: Tensor) -> float:
    return float(roc_auc_score(own.numpy(), scores.numpy()))
