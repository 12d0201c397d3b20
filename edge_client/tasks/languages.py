"""Spoken languages: five of them in one second of recorded human speech, from the prompts of a telephone exchange.

English and Spanish have one speaker, the others one each; so a voice alone does not tell all of them. A prompt is the
same sentence in every language. A fifth of the prompts is held out, in all languages: the model never heard any of
those sentences.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.tasks.audio import (
    MAX_SECONDS,
    Recording,
    Waveform,
    loudest,
    read_sound,
    resample,
    write_wav,
)
from edge_client.tasks.datasets import Dataset
from edge_client.tasks.decoders.sounds import FULL, LanguagesDecoder, to_integers
from edge_client.tasks.decoders.sounds import LANGUAGES_RATE as RATE
from edge_client.tasks.log_mel import LogMel
from edge_client.tasks.packages import DebianPackage, PackagedData, PackagedTask
from edge_client.tasks.task import SampleError

LENGTH = RATE
"""One second."""
_CLIPS = 3
"""Of one recording at most, so that a few long ones do not outweigh the others."""
_SHORTEST = RATE // 4
"""Shorter ones are no word."""
_BYTES = range(2 * _SHORTEST, 2 * RATE * MAX_SECONDS)
"""Of a recording that is used: a few have no sound, or more than `read_sound` takes."""
_QUIET = 0.01
"""A second with less of the energy that the loudest one of its recording has is a pause."""
_VOICES = {
    "English": ("en", "en_US_f_Allison", "Allison"),
    "French": ("fr", "fr_CA_f_June", "June"),
    "Italian": ("it", "it_IT_m_Carlo", "Carlo"),
    "Russian": ("ru", "ru_RU_f_IvrvoiceRU", "Ivrvoice"),
    "Spanish": ("es", "es_MX_f_Allison", "Allison"),
}
"""Language: end of its package's name, folder in it, speaker."""
_SPEAKERS = sorted({speaker for _, _, speaker in _VOICES.values()})
_NO_SPEECH = ("silence/", "beep", "ascending-2tone", "descending-2tone", "tt-monkeys")
_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


def read_recordings(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return clips of one second of the packages' recordings.

    Returns:
        "clips", int16 `[n, 8000]`, "targets", "speakers" and "prompts", int64 `[n]`, and "is_held_out", bool `[n]`.

    Raises:
        SampleError: a language has no recordings, or one cannot be read; the text names it.

    """
    recordings: list[tuple[int, int, str, str]] = []
    for number, (language, (_, folder, voice)) in enumerate(_VOICES.items()):
        found = {path.partition(f"/{folder}/")[2]: path for path in sorted(files) if f"/{folder}/" in path}
        prompts = [
            prompt for prompt, path in found.items() if not prompt.startswith(_NO_SPEECH) and len(files[path]) in _BYTES
        ]
        if not prompts:
            raise SampleError(f"there are no recordings in {language} (folder {folder})")
        recordings += [(number, _SPEAKERS.index(voice), prompt, found[prompt]) for prompt in prompts]
    names = sorted({prompt for _, _, prompt, _ in recordings})
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(names))
    held_out = {names[place] for place in order[: max(1, round(_TEST_FRACTION * len(names)))]}
    clips, rows = [], []
    for target, speaker, prompt, path in recordings:
        for waveform in _cut(resample(read_sound(files[path], path), RATE, path)):
            clips.append(torch.from_numpy(to_integers(waveform)))
            rows.append((target, speaker, names.index(prompt), prompt in held_out))
    targets, speakers, numbers, is_held_out = torch.tensor(rows).unbind(1)
    return {
        "clips": torch.stack(clips),
        "targets": targets.clone(),
        "speakers": speakers.clone(),
        "prompts": numbers.clone(),
        "is_held_out": is_held_out.bool(),
    }


def _cut(waveform: Waveform) -> list[Waveform]:
    """Return at most three seconds of a recording, from all over it, without pauses; the only one of a short one."""
    if len(waveform) < _SHORTEST:
        return []
    if len(waveform) < 2 * LENGTH:
        return [loudest(waveform, LENGTH)]
    count = min(_CLIPS, len(waveform) // LENGTH)
    starts = np.linspace(0, len(waveform) - LENGTH, count).round().astype(int)
    clips = [waveform[start : start + LENGTH] for start in starts]
    energies: list[float] = [float(np.square(clip, dtype=np.float64).sum()) for clip in clips]
    quietest = _QUIET * max(energies)
    return [clip for clip, energy in zip(clips, energies, strict=True) if energy > quietest]


ASTERISK_PROMPTS = PackagedData(
    name="asterisk-prompts-1",
    about="clips of telephone prompts in five languages",
    licence="CC-BY-SA-3.0; the Russian ones CC-BY-3.0",
    packages=tuple(
        DebianPackage(f"asterisk-core-sounds-{code}-wav", (f"usr/share/asterisk/sounds/{folder}/*.wav",))
        for code, folder, _ in _VOICES.values()
    ),
    download_mb=98,
    kept_mb=70,
    read=read_recordings,
)


class LanguagesTask(PackagedTask):
    """Recognises one of five languages in a recording of any sample rate."""

    name = "languages"
    labels: Sequence[str] = tuple(_VOICES)
    input_shape = (1, 40, 50)
    raw_shape = (LENGTH,)
    _decoder = LanguagesDecoder()
    raw_dtype = torch.int16
    data = ASTERISK_PROMPTS

    def __init__(self) -> None:
        # Made here and not when it is first needed, which may be while a graph is exported.
        self._front_end = LogMel(RATE, window=256, hop=160, highest_hz=3_800.0)

    def model(self) -> nn.Module:
        """Return a small convolutional network."""
        layers: list[tuple[str, nn.Module]] = []
        before = 1
        for number, (channels, kernel, stride) in enumerate(((16, 5, 2), (32, 3, 2), (64, 3, 2), (96, 3, 1)), 1):
            layers.append((f"conv{number}", nn.Conv2d(before, channels, kernel, stride, kernel // 2)))
            layers.append((f"norm{number}", nn.GroupNorm(4, channels)))
            layers.append((f"relu{number}", nn.ReLU()))
            before = channels
        layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
        layers.append(("output", nn.Linear(before, len(_VOICES))))
        return nn.Sequential(OrderedDict(layers))

    def dataset_of(self, tensors: dict[str, Tensor]) -> Dataset:
        """Return the clips; with the partition `natural` each device hears speakers of its own."""
        return Dataset(
            tensors["clips"], tensors["targets"], tuple(self.labels), tensors["speakers"], tensors["is_held_out"]
        )

    def decode(self, sample: object) -> Tensor:
        """Return the second around the loudest part of a recording, int16 `[8000]`: see `LanguagesDecoder.decode`."""
        return torch.from_numpy(self._decoder.decode(sample))

    def preprocess(self, raw: Tensor) -> Tensor:
        """Return waveforms `[n, 8000]` as log-mel pictures, float32 `[n, 1, 40, 50]`."""
        inputs: Tensor = self._front_end(raw.float() / FULL)
        return inputs

    def true_label(self, sample: object) -> str | None:
        """Return the label that a file carries as its title, as those of `save_sample` do."""
        return self._decoder.true_label(sample)

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out clip number `index` as a WAV file that carries its label; return the label.

        Raises:
            IndexError: there is no such held-out clip.

        """
        place = self.held_out_sample(index, "clip")
        label = self.labels[int(self.loaded.targets[place])]
        write_wav(path, Recording(self.loaded.raw[place].numpy(), RATE), label)
        return label
