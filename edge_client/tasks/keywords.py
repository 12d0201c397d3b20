"""Spoken keywords: ten words in eight English accents and 18 voices, spoken by espeak-ng, heard as log-mel pictures.

Each word is spoken twice per accent and voice, with other pitch and speed. Four of the voices are held out: the model
never heard them in training. Speaking needs the extra `speech`, once; recognising does not.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_client.tasks.audio import write_wav
from edge_client.tasks.decoders.sounds import KEYWORDS_RATE as RATE
from edge_client.tasks.decoders.sounds import KeywordsDecoder
from edge_client.tasks.keyword_clips import Clips, Recipe, load_clips
from edge_client.tasks.log_mel import LogMel
from edge_client.tasks.partition import part
from edge_client.tasks.task import Partition, Samples, Task

LENGTH = RATE
"""Samples that the front end expects: one second."""
_RECIPE = Recipe()
_PREPARATION = f"one second at {RATE} Hz, LogMel, version 2"


class KeywordsTask(Task):
    """Recognises one of ten words in a recording of any sample rate."""

    name = "keywords"
    labels: Sequence[str] = _RECIPE.words
    input_shape = (1, 40, 50)
    raw_shape = (LENGTH,)
    _decoder = KeywordsDecoder()

    def __init__(self) -> None:
        # Made here and not when it is first needed, which may be while a graph is exported.
        self._front_end = LogMel(RATE)

    def model(self) -> nn.Module:
        """Return a small convolutional network."""
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 16, 5, stride=2, padding=2),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(16, 32, 3, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                hidden=nn.Linear(960, 64),
                relu3=nn.ReLU(),
                output=nn.Linear(64, 10),
            )
        )

    def train_data(self, partition: Partition) -> Samples:
        """Return a device's share of the clips; with the partition `natural` each device hears accents of its own."""
        clips = _clips()
        return _share(clips, (~clips.is_held_out).nonzero().flatten(), partition)

    def test_data(self, partition: Partition) -> Samples:
        """Return a device's share of the clips of voices that nobody trains on, spread alike over the devices."""
        clips = _clips()
        return _share(clips, clips.held_out, Partition(partition.index, partition.count, "iid", seed=partition.seed))

    def decode(self, sample: object) -> Tensor:
        """Return the second around the loudest part of a recording, float32 `[16000]`: see `KeywordsDecoder.decode`."""
        return torch.from_numpy(self._decoder.decode(sample))

    def preprocess(self, raw: Tensor) -> Tensor:
        """Return waveforms `[n, 16000]` as log-mel pictures, float32 `[n, 1, 40, 50]`."""
        inputs: Tensor = self._front_end(raw)
        return inputs

    def true_label(self, sample: object) -> str | None:
        """Return the label that a file carries as its title, as those of `save_sample` do."""
        return self._decoder.true_label(sample)

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out clip number `index` as a WAV file that carries its label; return the label.

        Raises:
            IndexError: there is no such held-out clip.

        """
        clips = _clips()
        if not 0 <= index < len(clips.held_out):
            raise IndexError(f"there is no held-out clip {index}; there are {len(clips.held_out)}, numbered from 0")
        label = self.labels[int(clips.words[clips.held_out[index]])]
        write_wav(path, clips.recording(index), label)
        return label


@cache
def _clips() -> Clips:
    return load_clips(_RECIPE, KeywordsTask().prepare, _PREPARATION)


def _share(clips: Clips, indices: Tensor, partition: Partition) -> Samples:
    targets = clips.words[indices]
    chosen = indices[part(targets.numpy(), partition, clips.accents[indices].numpy())]
    return Samples(clips.inputs[chosen], clips.words[chosen])
