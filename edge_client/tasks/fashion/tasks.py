"""The tasks on Fashion-MNIST: the same images and partitions, other networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from edge_client.tasks.datasets import Dataset
from edge_client.tasks.fashion.images import FASHION_MNIST, LABELS, SIZE
from edge_client.tasks.fashion.residual import ResidualNetwork, group_norm
from edge_client.tasks.fashion.vision_transformer import VisionTransformer
from edge_client.tasks.images import gray_pixels, open_image
from edge_client.tasks.packages import PackagedTask
from edge_client.tasks.task import SampleError

_MEAN, _DEVIATION = 0.286, 0.353
"""Of all training pixels, of which 1 is white."""
_LABEL_KEY = "label"


class FashionTask(PackagedTask):
    """Recognises an article of clothing in an image of 28 x 28 pixels, light on dark."""

    name = "fashion"
    labels: Sequence[str] = LABELS
    input_shape = (1, SIZE, SIZE)
    raw_shape = (SIZE, SIZE)
    raw_dtype = torch.uint8
    data = FASHION_MNIST

    def model(self) -> nn.Module:
        """Return a residual network with BatchNorm (147,066 parameters)."""
        return ResidualNetwork(len(self.labels))

    def dataset_of(self, tensors: dict[str, Tensor]) -> Dataset:
        """Return the images; the 10,000 of the data set's own test part are held out."""
        return Dataset(tensors["images"], tensors["targets"], LABELS, is_held_out=tensors["is_held_out"])

    def decode(self, sample: object) -> Tensor:
        """Return an image as gray pixels, uint8 `[28, 28]`, dark to light.

        Args:
            sample: path of an image, bytes of one, PIL image (any mode), or array `[28, 28]` of levels 0 to 255.

        Raises:
            SampleError: it is none of these, damaged, or not 28 x 28.

        """
        if isinstance(sample, (str, Path)):
            pixels = _pixels(open_image(Path(sample)), str(sample))
        elif isinstance(sample, bytes):
            pixels = _pixels(open_image(sample), "the image")
        elif isinstance(sample, Image.Image):
            # An image that was opened from a file knows its name.
            pixels = _pixels(sample, getattr(sample, "filename", "") or "the image")
        elif isinstance(sample, np.ndarray):
            pixels = _check_array(sample)
        else:
            raise SampleError(f"an article is a path, bytes, an image or an array, not {type(sample).__name__}")
        return torch.from_numpy(pixels.round().astype(np.uint8))

    def preprocess(self, raw: Tensor) -> Tensor:
        """Return gray pixels, uint8 `[n, 28, 28]`, as inputs, float32 `[n, 1, 28, 28]` of mean 0 and deviation 1."""
        return ((raw.float() / 255 - _MEAN) / _DEVIATION).unsqueeze(1)

    def true_label(self, sample: object) -> str | None:
        """Return the label that an image file carries as text, as those of `save_sample` do."""
        if not isinstance(sample, (str, Path)):
            return None
        label = open_image(Path(sample)).info.get(_LABEL_KEY)
        return label if label in self.labels else None

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out image number `index` as a PNG that carries its label; return the label.

        Raises:
            IndexError: there is no such held-out image.

        """
        if not 0 <= index < len(self.held_out):
            raise IndexError(f"there is no held-out image {index}; there are {len(self.held_out)}, numbered from 0")
        place = int(self.held_out[index])
        label = self.labels[int(self.loaded.targets[place])]
        info = PngImagePlugin.PngInfo()
        info.add_text(_LABEL_KEY, label)
        Image.fromarray(self.loaded.raw[place].numpy()).save(path, pnginfo=info)
        return label


class FashionGroupNormTask(FashionTask):
    """As `fashion`, without statistics of batches, which skewed devices do not have in common."""

    name = "fashion-groupnorm"

    def model(self) -> nn.Module:
        """Return a residual network with GroupNorm (147,066 parameters)."""
        return ResidualNetwork(len(self.labels), group_norm)


class FashionVitTask(FashionTask):
    """As `fashion`, with attention."""

    name = "fashion-vit"

    def model(self) -> nn.Module:
        """Return a small vision transformer."""
        return VisionTransformer(len(self.labels))


def _pixels(image: Image.Image, name: str) -> NDArray[np.float64]:
    if image.size != (SIZE, SIZE):
        raise SampleError(f"{name} is {image.width} x {image.height} pixels; the fashion tasks expect {SIZE} x {SIZE}")
    return gray_pixels(image, name)


def _check_array(array: NDArray[Any]) -> NDArray[np.float64]:
    if array.shape != (SIZE, SIZE):
        raise SampleError(f"the array has shape {list(array.shape)}; the fashion tasks expect [{SIZE}, {SIZE}]")
    if array.dtype.kind not in "biuf":
        raise SampleError(f"the array holds {array.dtype}, not real numbers")
    levels = array.astype(np.float64)
    if not ((levels >= 0) & (levels <= 255)).all():
        raise SampleError("the array has values outside 0 to 255, or NaN")
    return levels
