"""Handwritten digits: the 1,797 images of 8 x 8 pixels that scikit-learn ships (UCI optical recognition)."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from edge_client.tasks.images import open_image
from edge_client.tasks.partition import part
from edge_client.tasks.task import Partition, SampleError, Samples, Task

SIZE = 8
_LEVELS = 16
"""Pixels are counts of dark dots, 0 to 16."""
_TEST_FRACTION = 0.2
_SPLIT_SEED = 0
_LABEL_KEY = "label"


class DigitsTask(Task):
    """Recognises one digit in an image of 8 x 8 pixels, light on dark."""

    name = "digits"
    labels: Sequence[str] = tuple("0123456789")
    input_shape = (1, SIZE, SIZE)

    def model(self) -> nn.Module:
        """Return a small convolutional network (38,282 parameters)."""
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def train_data(self, partition: Partition) -> Samples:
        """Return a device's share of four fifths of the images."""
        return _share(_split()[0], partition)

    def test_data(self, partition: Partition) -> Samples:
        """Return a device's share of the other fifth, spread alike over the devices."""
        return _share(_split()[1], Partition(partition.index, partition.count, "iid", seed=partition.seed))

    def prepare(self, sample: object) -> Tensor:
        """Return an image as an input.

        Args:
            sample: path of an image, PIL image (any mode; 0 to 255 means dark to light), or array `[8, 8]` of the
                data set's own levels, 0 to 16.

        Raises:
            SampleError: it is none of these, or not 8 x 8.

        """
        if isinstance(sample, (str, Path)):
            levels = _levels(open_image(Path(sample)), str(sample))
        elif isinstance(sample, Image.Image):
            levels = _levels(sample, "the image")
        elif isinstance(sample, np.ndarray):
            levels = _check_array(sample)
        else:
            raise SampleError(f"a digit is a path, an image or an array, not {type(sample).__name__}")
        return _scale(torch.from_numpy(levels.astype(np.float32))).unsqueeze(0)

    def true_label(self, sample: object) -> str | None:
        """Return the label that an image file carries as text, as those of `sample_image` do."""
        if not isinstance(sample, (str, Path)):
            return None
        label = open_image(Path(sample)).info.get(_LABEL_KEY)
        return label if label in self.labels else None

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out image number `index` as a PNG that carries its label; return the label."""
        images, targets = _split()[1]
        pixels = (images[index] * (255 / _LEVELS)).round().astype(np.uint8)
        label = str(targets[index])
        info = PngImagePlugin.PngInfo()
        info.add_text(_LABEL_KEY, label)
        Image.fromarray(pixels).save(path, pnginfo=info)
        return label


_Split = tuple[NDArray[np.float64], NDArray[np.int64]]


@cache
def _split() -> tuple[_Split, _Split]:
    # Importing scikit-learn takes most of a second, which `edge-client predict` need not wait for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data: Any = load_digits()
    train, test, train_targets, test_targets = train_test_split(
        data.images, data.target, test_size=_TEST_FRACTION, random_state=_SPLIT_SEED, stratify=data.target
    )
    return (train, train_targets.astype(np.int64)), (test, test_targets.astype(np.int64))


def _share(split: _Split, partition: Partition) -> Samples:
    images, targets = split
    chosen = part(targets, partition)
    inputs = _scale(torch.from_numpy(images[chosen].astype(np.float32))).unsqueeze(1)
    return Samples(inputs, torch.from_numpy(targets[chosen]))


def _scale(levels: Tensor) -> Tensor:
    """Return levels 0 to 16 as values from -1 to 1."""
    return levels / (_LEVELS / 2) - 1


def _levels(image: Image.Image, name: str) -> NDArray[np.float64]:
    if image.size != (SIZE, SIZE):
        raise SampleError(f"{name} has {image.width} x {image.height} pixels; a digit has {SIZE} x {SIZE}")
    pixels = np.asarray(image.convert("L"), dtype=np.float64)
    return np.round(pixels * (_LEVELS / 255))


def _check_array(array: NDArray[Any]) -> NDArray[np.float64]:
    if array.shape != (SIZE, SIZE):
        raise SampleError(f"the array has shape {list(array.shape)}; a digit has [{SIZE}, {SIZE}]")
    try:
        levels = array.astype(np.float64)
    except (TypeError, ValueError):
        raise SampleError(f"the array holds {array.dtype}, not numbers") from None
    if not ((levels >= 0) & (levels <= _LEVELS)).all():
        raise SampleError(f"the array has values outside 0 to {_LEVELS}, or NaN")
    return levels
