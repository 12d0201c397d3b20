"""The trained model that `fashion-lora` adapts: a vision transformer that knows five of the ten articles.

It is made of the images here, once, and kept in the cache. On one kind of machine it always comes out the same; others
round otherwise, so that a fleet of several kinds copies the file of one.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_client.tasks.cache import cache_path, cached, kept
from edge_client.tasks.fashion.images import LABELS
from edge_client.tasks.fashion.vision_transformer import VisionTransformer

KNOWN = ("sandal", "shirt", "sneaker", "bag", "ankle boot")
"""What it learns to recognise; the other five are for the adapters."""
_NAME = "fashion-vit-base-1"
_STEPS = 600
_BATCH = 64
_LR = 2e-3
_WEIGHT_DECAY = 0.01
_SEED = 0


def base_path() -> Path:
    """Return where the weights are kept; they may not be there yet."""
    return cache_path(_NAME)


def base_weights() -> dict[str, Tensor] | None:
    """Return the weights that are kept, or None if there are none."""
    return kept(_NAME)


def make_base(inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Train the model if its weights are not kept yet; return them.

    It takes 600 batches of 64 with AdamW and a cosine schedule, about 20 s.

    Args:
        inputs: prepared training images, `[n, 1, 28, 28]`.
        targets: positions of their labels in `LABELS`, int64 `[n]`.

    """
    return cached(_NAME, lambda: _train(inputs, targets))


def _train(inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    places = [LABELS.index(label) for label in KNOWN]
    known = torch.isin(targets, torch.tensor(places)).nonzero().flatten()
    number = torch.full((len(LABELS),), -1)
    number[places] = torch.arange(len(places))
    generator = torch.Generator().manual_seed(_SEED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum depends on how many there are
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = VisionTransformer(len(KNOWN))
        optimizer = torch.optim.AdamW(model.parameters(), _LR, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        for _ in range(_STEPS):
            batch = known[torch.randint(len(known), (_BATCH,), generator=generator)]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), number[targets[batch]]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    finally:
        torch.set_num_threads(threads)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
