"""The tasks of the convergence benchmark: real data that packages ship, or that a speech synthesiser speaks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_client.tasks import Partition, Samples, Task, load_task
from edge_client.tasks.data import in_memory
from edge_client.tasks.partition import dirichlet

DEVICES = 4


@dataclass(frozen=True)
class LearningTask:
    """A model, its loss, and data that are spread over the devices; reached when the metric passes the target."""

    name: str
    describes: str
    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    devices: list[Samples]
    test: Samples
    metric: str
    """"accuracy", which grows, or "loss", which falls."""
    target: float
    budget: int
    """Batches of each device, after which a trial is given up."""
    evaluate_every: int = 1

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        """Return the metric on the held-out samples."""
        was_training = model.training
        model.eval()
        outputs = model(self.test.inputs)
        model.train(was_training)
        if self.metric == "loss":
            return float(self.loss(outputs, self.test.targets))
        return float((outputs.argmax(dim=-1) == self.test.targets).float().mean())

    def is_reached(self, value: float) -> bool:
        """Whether a value of the metric has reached the target."""
        return value <= self.target if self.metric == "loss" else value >= self.target


def digits() -> LearningTask:
    """Handwritten digits with strong label skew, a small convolutional network."""
    task = load_task("digits")
    return _from_task(task, "dirichlet", "digits CNN", "label skew: Dirichlet 0.3", target=0.97, budget=400)


def keywords() -> LearningTask:
    """Spoken words in eight accents, two to a device; the test set's voices were never heard."""
    task = load_task("keywords")
    words = _from_task(task, "natural", "keywords CNN", "two accents on each device", target=0.97, budget=250)
    return replace(words, evaluate_every=2)


def autoencoder() -> LearningTask:
    """Handwritten digits through a bottleneck of eight numbers: the classic hard problem for first-order methods."""
    inputs, labels = _digit_vectors()
    order = np.random.default_rng(0).permutation(len(inputs))
    held_out, rest = order[:360], order[360:]
    parts = dirichlet(labels[rest], DEVICES, 0.3, seed=0)
    sizes = (64, 128, 64, 32, 8, 32, 64, 128, 64)

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for number, (size, following) in enumerate(pairwise(sizes)):
            layers.append(nn.Linear(size, following))
            if number not in (3, 7):  # the code and the output are linear
                layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(outputs)

    samples = [Samples(inputs[rest[part]], inputs[rest[part]]) for part in parts]
    test = Samples(inputs[held_out], inputs[held_out])
    skew = "label skew: Dirichlet 0.3"
    return LearningTask("digits autoencoder", skew, build, loss, samples, test, "loss", target=18.0, budget=2000)


def characters() -> LearningTask:
    """Predict the next character of the reference texts that Python ships; each device has other chapters."""
    text, alphabet = _reference_text()
    length = 32
    ids = torch.tensor([alphabet[character] for character in text])
    sequences = ids[: len(ids) // (length + 1) * (length + 1)].view(-1, length + 1)
    devices, held_out = [], []
    for chapters in torch.tensor_split(sequences, DEVICES):
        border = len(chapters) * 9 // 10
        devices.append(Samples(chapters[:border, :-1], chapters[:border, 1:]))
        held_out.append(chapters[border:])
    test = torch.cat(held_out)[::6]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    return LearningTask(
        "characters transformer",
        "other chapters on each device",
        lambda: CharacterModel(len(alphabet), length),
        loss,
        devices,
        Samples(test[:, :-1], test[:, 1:]),
        "loss",
        target=2.0,
        budget=400,
        evaluate_every=4,
    )


LEARNING_TASKS: Mapping[str, Callable[[], LearningTask]] = {
    "digits": digits,
    "autoencoder": autoencoder,
    "keywords": keywords,
    "characters": characters,
}


class CharacterModel(nn.Module):
    """A small causal transformer: two blocks of width 64, four heads."""

    def __init__(self, alphabet: int, length: int, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.character = nn.Embedding(alphabet, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, alphabet)
        for embedding in (self.character, self.position):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[batch, length, alphabet]` of the characters that follow each of `x` `[batch, length]`."""
        hidden = self.character(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class Block(nn.Module):
    """Attention and a two-layer network, both after a normalisation and around a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, length, width]` for the same."""
        batch, length, width = x.shape
        parts = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).reshape(batch, length, width))
        hidden: Tensor = x + self.down(F.gelu(self.up(self.network_norm(x))))
        return hidden


def _from_task(task: Task, kind: str, name: str, describes: str, *, target: float, budget: int) -> LearningTask:
    parts = [Partition(index, DEVICES, kind, 0.3, seed=0) for index in range(DEVICES)]  # type: ignore[arg-type]
    devices = [in_memory(task, task.train_data(part)) for part in parts]
    test = in_memory(task, task.test_data(Partition()))
    return LearningTask(name, describes, task.model, task.loss, devices, test, "accuracy", target, budget)


@cache
def _digit_vectors() -> tuple[Tensor, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), data.target


@cache
def _reference_text() -> tuple[str, dict[str, int]]:
    from pydoc_data.topics import topics

    text = "\n".join(topics[topic] for topic in sorted(topics))
    text = "".join(character if character == "\n" or 32 <= ord(character) < 127 else " " for character in text)
    return text, {character: number for number, character in enumerate(sorted(set(text)))}
