"""What the zoo's models are trained with: random batches, and the losses that the models do not compute themselves."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from benchmarks.zoo.case import SAMPLES, Batch

CLASSES = 3
WORDS = 50
"""In a vocabulary; the first few have a meaning of their own."""
LENGTH = 9
"""Of a text, in words."""
NODES = 5
"""Of a graph."""


def integers(g: Generator, below: int, *shape: int, least: int = 0) -> Tensor:
    """Return random integers, an array for each sample."""
    return torch.randint(least, below, (SAMPLES, *shape), generator=g)


def normal(g: Generator, *shape: int) -> Tensor:
    """Return random numbers, an array for each sample."""
    return torch.randn(SAMPLES, *shape, generator=g)


def labelled(name: str, *shape: int) -> Callable[[Generator], Batch]:
    """Return what makes batches of random inputs of a shape, each with a label."""
    return lambda g: {name: normal(g, *shape), "labels": integers(g, CLASSES)}


def words(g: Generator) -> Tensor:
    """Return texts."""
    return integers(g, WORDS, LENGTH, least=5)


def labelled_texts(g: Generator) -> Batch:
    """Return texts of different lengths, each with a label."""
    mask = (torch.arange(LENGTH) < integers(g, LENGTH + 1, 1, least=3)).long()
    return {"input_ids": words(g) * mask, "attention_mask": mask, "labels": integers(g, CLASSES)}


def continued_texts(g: Generator) -> Batch:
    """Return texts whose every next word is to be told."""
    texts = words(g)
    return {"input_ids": texts, "labels": texts}


def boxes(g: Generator) -> list[Batch]:
    """Return two objects in each picture, with their boxes."""
    return [
        {"class_labels": torch.randint(0, CLASSES, (2,), generator=g), "boxes": 0.2 + torch.rand(2, 4, generator=g) / 2}
        for _ in range(SAMPLES)
    ]


def series(g: Generator) -> Batch:
    """Return time series with their futures, and what is known of each time."""
    return {
        "past_values": normal(g, 10),
        "past_time_features": normal(g, 10, 1),
        "past_observed_mask": torch.ones(SAMPLES, 10),
        "future_values": normal(g, 4),
        "future_time_features": normal(g, 4, 1),
    }


def graphs(g: Generator) -> Batch:
    """Return labelled graphs, as one graph that falls into pieces."""
    edges = integers(g, NODES, 2, 8) + NODES * torch.arange(SAMPLES)[:, None, None]
    return {"x": normal(g, NODES, 4).flatten(0, 1), "edges": torch.cat(list(edges), 1), "labels": integers(g, CLASSES)}


def classified(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a model that gives logits for inputs `x`."""
    return F.cross_entropy(model(batch["x"]), batch["labels"])


def contrasted(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a model that tells which text belongs to which picture."""
    loss: Tensor = model(**batch, return_loss=True).loss
    return loss


def graphs_classified(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a model of nodes, whose mean is their graph's logits."""
    logits = model(batch["x"], batch["edges"]).view(SAMPLES, NODES, CLASSES).mean(1)
    return F.cross_entropy(logits, batch["labels"])


def last_classified(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a model of sequences `[batch, channels, time]`, by what it says at their end."""
    return F.cross_entropy(model(batch["x"])[:, :, -1], batch["labels"])


def reconstructed(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a codec's two halves; what is between them in its own forward is not differentiable."""
    encoder, decoder = model.get_submodule("encoder"), model.get_submodule("decoder")
    loss: Tensor = F.mse_loss(decoder(encoder(batch["x"])), batch["x"])
    return loss


def row_classified(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a model of tables, some of whose columns are numbers and some categories."""
    return F.cross_entropy(model(batch["x"], batch["categories"]), batch["labels"])


def sparsely_classified(model: nn.Module, batch: Batch) -> Tensor:
    """Return TabNet's loss, which rewards the use of few columns."""
    logits, sparsity = model(batch["x"])
    loss: Tensor = F.cross_entropy(logits, batch["labels"]) - 1e-3 * sparsity
    return loss
