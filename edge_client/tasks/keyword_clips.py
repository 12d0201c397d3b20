"""The clips of the task `keywords`: words that espeak-ng speaks in many accents and voices, made once and kept."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor

from edge_client.tasks.audio import Recording
from edge_client.tasks.cache import cached
from edge_client.tasks.decoders.sounds import KEYWORDS
from edge_client.tasks.speech import Utterance, speak

_VERSION = 1
"""Of how a recipe is followed; another one makes another cache file."""


@dataclass(frozen=True)
class Recipe:
    """What is spoken: every word in every accent by every voice, `takes` times with other pitch and speed."""

    words: tuple[str, ...] = KEYWORDS
    accents: tuple[str, ...] = (
        "en-029",  # Caribbean
        "en",  # British (en-GB)
        "en-GB-scotland",
        "en-GB-x-gbclan",  # Lancaster
        "en-GB-x-gbcwmd",  # West Midlands
        "en-GB-x-rp",  # Received Pronunciation
        "en-US",
        "en-US-nyc",
    )
    """Languages of espeak-ng."""
    voices: tuple[str, ...] = (
        *("f1", "Andrea", "aunty", "belinda", "linda"),
        *("m1", "m2", "m3", "m4", "m5", "m7", "Andy", "edward", "max"),
        *("Annie", "Michael", "f4", "m6"),
    )
    """Variants of espeak-ng that sound like people, without those with breath (f2, f3, f5, Alicia and others), which
    sound a little different in every process."""
    held_out: tuple[str, ...] = ("Annie", "Michael", "f4", "m6")
    """Those of the voices that are never trained on."""
    takes: int = 2
    pitches: tuple[int, int] = (35, 65)
    """Lowest and highest pitch, of 0 to 99."""
    rates: tuple[int, int] = (130, 210)
    """Slowest and fastest speed in words per minute."""
    seed: int = 0

    def utterances(self) -> list[Utterance]:
        """Return what is spoken, ordered by voice, accent, word and take."""
        rng = np.random.default_rng(self.seed)
        return [
            Utterance(
                word,
                f"{accent}+{voice}",
                int(rng.integers(*self.pitches, endpoint=True)),
                int(rng.integers(*self.rates, endpoint=True)),
            )
            for voice, accent, word, _ in product(self.voices, self.accents, self.words, range(self.takes))
        ]


@dataclass(frozen=True, eq=False)
class Clips:
    """Spoken clips: what was said, how, and the recordings of the held-out ones."""

    inputs: Tensor
    """Prepared clips, float32 `[n, ...]`."""
    words: Tensor
    """Positions of the words in the recipe, int64 `[n]`; the same with accents and voices."""
    accents: Tensor
    is_held_out: Tensor
    """Bool `[n]`."""
    samples: Tensor
    """Recordings of the held-out clips one after the other, int16."""
    ends: Tensor
    """Where each of them ends, int64."""
    rate: Tensor
    """Samples per second, a scalar."""

    @cached_property
    def held_out(self) -> Tensor:
        """Positions of the held-out clips, int64."""
        return self.is_held_out.nonzero().flatten()

    def recording(self, index: int) -> Recording:
        """Return the recording of held-out clip number `index`, int16."""
        first = int(self.ends[index - 1]) if index else 0
        return Recording(self.samples[first : int(self.ends[index])].numpy(), int(self.rate))


def load_clips(recipe: Recipe, prepare: Callable[[Recording], Tensor], preparation: str) -> Clips:
    """Return the clips of a recipe from the cache; the first time they are made, which takes 10 to 20 s.

    Args:
        recipe: what is spoken.
        prepare: turns a recording into an input.
        preparation: describes what `prepare` does; another one makes another cache file.

    Raises:
        SpeechError: they must be made, and espeak-ng is missing or fails.

    """
    description = json.dumps([_VERSION, asdict(recipe), preparation])
    version = hashlib.sha256(description.encode()).hexdigest()[:12]
    return Clips(**cached(f"keywords-{version}", lambda: _make(recipe, prepare)))


def _make(recipe: Recipe, prepare: Callable[[Recording], Tensor]) -> dict[str, Tensor]:
    recordings = speak(recipe.utterances())
    voices, accents, words, _ = np.indices(
        (len(recipe.voices), len(recipe.accents), len(recipe.words), recipe.takes)
    ).reshape(4, -1)
    is_held_out = np.isin(np.array(recipe.voices), recipe.held_out)[voices]
    held_out = [recording.samples for recording, is_out in zip(recordings, is_held_out, strict=True) if is_out]
    return {
        "inputs": torch.stack([prepare(recording) for recording in recordings]),
        "words": torch.from_numpy(words.copy()),
        "accents": torch.from_numpy(accents.copy()),
        "is_held_out": torch.from_numpy(is_held_out),
        "samples": torch.from_numpy(np.concatenate(held_out)),
        "ends": torch.tensor([len(samples) for samples in held_out]).cumsum(0),
        "rate": torch.tensor(recordings[0].rate),
    }
