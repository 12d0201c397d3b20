"""Text, letter by letter: a small language model on the sayings of `fortune`, which are sorted by topic."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.tasks.datasets import Dataset
from edge_client.tasks.packages import DebianPackage, PackagedData, PackagedTask
from edge_client.tasks.task import SampleError
from edge_client.tasks.transformer import Positions, TransformerBlock

PLACES = 48
"""Characters that the model sees."""
ALPHABET = " etoanisrhl\nducmygfp.wb,-vk\"TI'ASWC:MBDxELHPNORGF1j?)(!YJz0qU;2K9358V4*7_6=X/Q[]>#`Z<&@$+^\\~%|{}"
"""What there is, the common ones first."""
TOPICS = (
    *("art", "computers", "cookie", "definitions", "education", "food", "humorists", "law", "linux", "miscellaneous"),
    *("people", "platitudes", "politics", "science", "sports", "startrek", "tao", "wisdom", "work"),
)
"""Files of the package."""
_FOLDER = "usr/share/games/fortunes"
_OVERSTRIKE = re.compile(".\x08")
"""What a printer would have printed another character upon."""
_TEST_FRACTION = 0.1
_SPLIT_SEED = 0
_NAMES = {" ": "space", "\n": "newline"}
_PLACE_OF = {character: place for place, character in enumerate(ALPHABET)}
MAX_BYTES = 16_000_000
"""Longer texts are refused."""


def to_tokens(text: str) -> NDArray[np.uint8]:
    """Return a text as places in the alphabet, uint8; tabs are spaces, and what the alphabet lacks is left out."""
    spaced = _OVERSTRIKE.sub("", text).expandtabs(4)
    return np.array([_PLACE_OF[character] for character in spaced if character in _PLACE_OF], dtype=np.uint8)


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

    def model(self) -> nn.Module:
        """Return a small transformer (82,000 parameters)."""
        return TextModel(len(ALPHABET))

    def dataset_of(self, tensors: dict[str, Tensor]) -> Dataset:
        """Return the windows; their topics are the groups, and what a device has more or fewer of."""
        windows = tensors["windows"].long()
        return Dataset(windows[:, :-1], windows[:, 1:], tuple(self.labels), tensors["topics"], tensors["is_held_out"])

    def decode(self, sample: object) -> Tensor:
        """Return the last 48 characters of a text as places in the alphabet, int64 `[48]`; newlines before a short one.

        Args:
            sample: path of a text file (UTF-8), or its content as bytes.

        Raises:
            SampleError: it is neither, too long, no text, or has no character of the alphabet.

        """
        if isinstance(sample, (str, Path)):
            name, content = str(sample), _read(Path(sample))
        elif isinstance(sample, bytes):
            name, content = "the text", sample
        else:
            raise SampleError(f"a text is a path or bytes, not {type(sample).__name__}")
        try:
            tokens = to_tokens(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise SampleError(f"{name} is no text in UTF-8: {error}") from None
        if not len(tokens):
            raise SampleError(f"{name} is empty, or has no character that the model knows")
        padded = np.full(PLACES, _PLACE_OF["\n"], dtype=np.int64)
        kept = tokens[-PLACES:]
        padded[PLACES - len(kept) :] = kept
        return torch.from_numpy(padded)

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


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SampleError(f"{path} has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise SampleError(f"{path} does not exist") from None
    except OSError as error:
        raise SampleError(f"{path} cannot be read: {error.strerror or error}") from None
