"""The tasks on Fashion-MNIST: the same images and partitions, other networks."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from edge_client.tasks.datasets import Dataset
from edge_client.tasks.decoders.fashion import LABELS, SIZE, FashionDecoder
from edge_client.tasks.fashion.images import FASHION_MNIST
from edge_client.tasks.fashion.residual import ResidualNetwork, group_norm
from edge_client.tasks.fashion.vision_transformer import VisionTransformer
from edge_client.tasks.images import save_labelled
from edge_client.tasks.packages import PackagedTask

_MEAN, _DEVIATION = 0.286, 0.353
"""Of all training pixels, of which 1 is white."""


class FashionTask(PackagedTask):
    """Recognises an article of clothing in an image of 28 x 28 pixels, light on dark."""

    name = "fashion"
    labels: Sequence[str] = LABELS
    input_shape = (1, SIZE, SIZE)
    raw_shape = (SIZE, SIZE)
    raw_dtype = torch.uint8
    data = FASHION_MNIST
    _decoder = FashionDecoder()

    def model(self) -> nn.Module:
        """Return a residual network with BatchNorm (147,066 parameters)."""
        return ResidualNetwork(len(self.labels))

    def dataset_of(self, tensors: dict[str, Tensor]) -> Dataset:
        """Return the images; the 10,000 of the data set's own test part are held out."""
        return Dataset(tensors["images"], tensors["targets"], LABELS, is_held_out=tensors["is_held_out"])

    def decode(self, sample: object) -> Tensor:
        """Return an image as gray pixels, uint8 `[28, 28]`, dark to light: see `FashionDecoder.decode`."""
        return torch.from_numpy(self._decoder.decode(sample))

    def preprocess(self, raw: Tensor) -> Tensor:
        """Return gray pixels, uint8 `[n, 28, 28]`, as inputs, float32 `[n, 1, 28, 28]` of mean 0 and deviation 1."""
        return ((raw.float() / 255 - _MEAN) / _DEVIATION).unsqueeze(1)

    def true_label(self, sample: object) -> str | None:
        """Return the label that an image file carries as text, as those of `save_sample` do."""
        return self._decoder.true_label(sample)

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out image number `index` as a PNG that carries its label; return the label.

        Raises:
            IndexError: there is no such held-out image.

        """
        place = self.held_out_sample(index, "image")
        label = self.labels[int(self.loaded.targets[place])]
        save_labelled(Image.fromarray(self.loaded.raw[place].numpy()), path, label)
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
