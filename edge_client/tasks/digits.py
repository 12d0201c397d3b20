"""Handwritten digits: the 1,797 images of 8 x 8 pixels that scikit-learn ships (UCI optical recognition)."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from edgenewton.common.extras import needing
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from edge_client.tasks.decoders.digits import LABELS, LEVELS, SIZE, DigitsDecoder
from edge_client.tasks.images import save_labelled
from edge_client.tasks.partition import part
from edge_client.tasks.task import Partition, Samples, Task

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


class DigitsTask(Task):
    """Recognises one digit in an image of 8 x 8 pixels, light on dark."""

    name = "digits"
    labels: Sequence[str] = LABELS
    input_shape = (1, SIZE, SIZE)
    raw_shape = (SIZE, SIZE)
    raw_dtype = torch.uint8
    _decoder = DigitsDecoder()

    def model(self) -> nn.Module:
        """Return a small convolutional network (38,282 parameters)."""
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 16, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(16, 32, 3, padding=1),
                relu2=nn.ReLU(),
                pool=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                hidden=nn.Linear(512, 64),
                relu3=nn.ReLU(),
                output=nn.Linear(64, 10),
            )
        )

    def train_data(self, partition: Partition) -> Samples:
        """Return a device's share of four fifths of the images."""
        return _share(_split()[0], partition)

    def test_data(self, partition: Partition) -> Samples:
        """Return a device's share of the other fifth, spread alike over the devices."""
        return _share(_split()[1], Partition(partition.index, partition.count, "iid", seed=partition.seed))

    def decode(self, sample: object) -> Tensor:
        """Return an image as gray pixels, uint8 `[8, 8]`, dark to light: see `DigitsDecoder.decode`."""
        return torch.from_numpy(self._decoder.decode(sample))

    def preprocess(self, raw: Tensor) -> Tensor:
        """Return gray pixels, uint8 `[n, 8, 8]`, as inputs, float32 `[n, 1, 8, 8]`."""
        return _scale((raw.float() * (LEVELS / 255)).round()).unsqueeze(1)

    def true_label(self, sample: object) -> str | None:
        """Return the label that an image file carries as text, as those of `save_sample` do."""
        return self._decoder.true_label(sample)

    def sample_image(self, index: int) -> Image.Image:
        """Return held-out image number `index` in mode "L", which `prepare` turns into exactly the held-out input.

        Raises:
            IndexError: there is no such held-out image.

        """
        images = _split()[1].images
        if not 0 <= index < len(images):
            raise IndexError(f"there is no held-out digit {index}; there are {len(images)}, numbered from 0")
        return Image.fromarray((images[index] * (255 / LEVELS)).round().astype(np.uint8))

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out image number `index` as a PNG that carries its label; return the label.

        Raises:
            IndexError: there is no such held-out image.

        """
        image = self.sample_image(index)
        label = self.labels[int(_split()[1].targets[index])]
        save_labelled(image, path, label)
        return label


def held_out_indices() -> NDArray[np.int64]:
    """Return the positions of the held-out images in scikit-learn's data set, int64 `[360]`.

    Entry `i` is the image that `DigitsTask.sample_image(i)` shows.
    """
    return _split()[1].indices.copy()


class _Part(NamedTuple):
    """A part of the data set: levels float64 `[n, 8, 8]`, classes and positions int64 `[n]`."""

    images: NDArray[np.float64]
    targets: NDArray[np.int64]
    indices: NDArray[np.int64]


@cache
def _split() -> tuple[_Part, _Part]:
    """Return what is trained on and what is held out: the same for every device and every seed."""
    # Importing scikit-learn takes most of a second, which `edge-client predict` need not wait for.
    with needing("the data of task 'digits'", "tasks"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    data: Any = load_digits()
    targets = data.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(targets)), test_size=_TEST_FRACTION, random_state=_SPLIT_SEED, stratify=targets
    )
    return _Part(data.images[train], targets[train], train), _Part(data.images[test], targets[test], test)


def _share(whole: _Part, partition: Partition) -> Samples:
    chosen = part(whole.targets, partition)
    inputs = _scale(torch.from_numpy(whole.images[chosen].astype(np.float32))).unsqueeze(1)
    return Samples(inputs, torch.from_numpy(whole.targets[chosen]))


def _scale(levels: Tensor) -> Tensor:
    """Return levels 0 to 16 as values from -1 to 1, which have mean -0.39 and standard deviation 0.75 here."""
    return levels / (LEVELS / 2) - 1
