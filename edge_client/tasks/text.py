"""Text, letter by letter: a small language model on the sayings of `fortune`, which are sorted by topic."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.tasks.datasets import Dataset
from edge_client.tasks.decoders.text import ALPHABET, PLACES, TextDecoder, to_tokens
from edge_client.tasks.packages import DebianPackage, PackagedData, PackagedTask
from edge_client.tasks.task import SampleError
from edge_client.tasks.transformer import Positions, TransformerBlock

__all__ = ["ALPHABET", "PLACES", "TOPICS", "TextModel", "TextTask", "read_sayings", "to_tokens"]

TOPICS = (
    *("art", "computers", "cookie", "definitions", "education", "food", "humorists", "law", "linux", "miscellaneous"),
    *("people", "platitudes", "politics", "science", "sports", "startrek", "tao", "wisdom", "work"),
)
"""Files of the package."""
_FOLDER = "usr/share/games/fortunes"
_TEST_FRACTION = 0.1
_SPLIT_SEED = 0
_NAMES = {" ": "space", "\n": "newline"}


def read_sayings(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return windows of the package's texts, each from one topic and from what is trained on or held out.

    Returns:
        "windows", uint8 `[n, 49]`, "topics", int64 `[n]`, and "is_held_out", bool `[n]`.

    Raises:
        SampleError: a topic is missing; the text names it.

    """
    rng = np.random.default_rng(_SPLIT_SEED)
    windows, topics, is_held_out = [], [], []
    for topic, name in enumerate(TOPICS):
        found = [content for path, content in files.items() if path.endswith(f"/fortunes/{name}")]
        if len(found) != 1:
            raise SampleError(f"there are {len(found)} files {name}; 1 was expected")
        sayings = found[0].decode("utf-8", errors="replace").split("\n%\n")
        chosen = rng.random(len(sayings)) < _TEST_FRACTION
        for part in (False, True):
            text = "\n\n".join(saying for saying, is_out in zip(sayings, chosen, strict=True) if is_out == part)
            tokens = to_tokens(text)
            # The last character of a window is the first of the next: each is asked for once.
            count = (len(tokens) - 1) // PLACES
            starts = PLACES * np.arange(max(count, 0))
            windows.append(tokens[starts[:, None] + np.arange(PLACES + 1)])
            topics += [topic] * len(starts)
            is_held_out += [part] * len(starts)
    return {
        "windows": torch.from_numpy(np.concatenate(windows)),
        "topics": torch.tensor(topics),
        "is_held_out": torch.tensor(is_held_out),
    }


FORTUNES = PackagedData(
    name="fortunes-1",
    about="sayings of 19 topics",
    licence="BSD-3-Clause, the package's; the sayings are of many authors",
    packages=(DebianPackage("fortunes", tuple(f"{_FOLDER}/{topic}" for topic in TOPICS)),),
    download_mb=0.9,
    kept_mb=2,
    read=read_sayings,
)


class TextModel(nn.Module):
    """Characters `[n, places]` to outputs for the next one at each place, `[n, places, characters]`."""

    def __init__(self, characters: int, places: int = PLACES, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        nn.init.normal_(self.characters.weight, std=0.02)
        self.positions = Positions(places, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, is_causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self.output(self.norm(self.blocks(self.positions(self.characters(x)))))
        return outputs


class TextTask(PackagedTask):
    """Recognises which character comes next, of a text's last 48."""

    name = "text"
    labels: Sequence[str] = tuple(_NAMES.get(character, character) for character in ALPHABET)
    input_shape = (PLACES,)
    raw_dtype = torch.int64
    data = FORTUNES
    _decoder = TextDecoder()

    def model(self) -> nn.Module:
        """Return a small transformer (82,000 parameters)."""
        return TextModel(len(ALPHABET))

    def dataset_of(self, tensors: dict[str, Tensor]) -> Dataset:
        """Return the windows; their topics are the groups, and what a device has more or fewer of."""
        windows = tensors["windows"].long()
        return Dataset(windows[:, :-1], windows[:, 1:], tuple(self.labels), tensors["topics"], tensors["is_held_out"])

    def decode(self, sample: object) -> Tensor:
        """Return the last 48 characters of a text as places in the alphabet, int64 `[48]`: see `TextDecoder.decode`."""
        return torch.from_numpy(self._decoder.decode(sample))

    def probe(self, generator: torch.Generator, n: int) -> Tensor:
        """Return `n` texts of independent characters, int64 `[n, 48]`, the common ones often (Zipf's law)."""
        weights = 1 / torch.arange(2, len(ALPHABET) + 2, dtype=torch.float64)
        return torch.multinomial(weights, n * PLACES, replacement=True, generator=generator).view(n, PLACES)

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out text number `index` as a file; return the label of the character that follows it.

        Raises:
            IndexError: there is no such held-out text.

        """
        place = self.held_out_sample(index, "text")
        path.write_text("".join(ALPHABET[token] for token in self.loaded.raw[place].tolist()), encoding="utf-8")
        return self.labels[int(self.loaded.targets[place, -1])]
