"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, https://arxiv.org/abs/1708.07747): 70,000 images of 28 x 28 pixels."""

import gzip
import struct
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.tasks.decoders.fashion import LABELS, SIZE
from edge_client.tasks.packages import DebianPackage, PackagedData
from edge_client.tasks.task import SampleError

__all__ = ["FASHION_MNIST", "LABELS", "SIZE", "read_idx", "read_images"]

_FOLDER = "usr/share/datasets/fashion-mnist"
_PARTS = ("train", "t10k")
_IMAGES, _LABELS = (0x08, 3), (0x08, 1)
"""Type (unsigned bytes) and number of dimensions, as the header of an idx file has them."""
_MAX_BYTES = 1 << 28


def read_images(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return the images of the package's files.

    Returns:
        "images", uint8 `[n, 28, 28]`, "targets", int64 `[n]`, and "is_held_out", bool `[n]`.

    Raises:
        SampleError: a file is missing or damaged; the text names it.

    """
    images, targets, is_held_out = [], [], []
    for part in _PARTS:
        pixels = read_idx(_one(files, f"{part}-images-idx3-ubyte.gz"), f"{part}-images", *_IMAGES)
        classes = read_idx(_one(files, f"{part}-labels-idx1-ubyte.gz"), f"{part}-labels", *_LABELS)
        if pixels.shape[1:] != (SIZE, SIZE) or len(pixels) != len(classes) or classes.max(initial=0) >= len(LABELS):
            raise SampleError(f"{part}: images {list(pixels.shape)} and labels {list(classes.shape)} do not fit")
        images.append(torch.from_numpy(pixels))
        targets.append(torch.from_numpy(classes.astype(np.int64)))
        is_held_out.append(torch.full((len(classes),), part == "t10k"))
    return {"images": torch.cat(images), "targets": torch.cat(targets), "is_held_out": torch.cat(is_held_out)}


def read_idx(packed: bytes, name: str, kind: int, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in a compressed idx file: two zero bytes, type, number of dimensions, sizes, content.

    Raises:
        SampleError: it is damaged, too large, or of another kind.

    """
    try:
        content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, _MAX_BYTES)
        header = struct.unpack_from(f">HBB{dimensions}I", content)
    except (zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise SampleError(f"{name} is damaged: {error}") from None
    shape = header[3:]
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if header[:3] != (0, kind, dimensions) or body.size != np.prod(shape, dtype=np.int64):
        raise SampleError(f"{name} is no idx file of {dimensions} dimensions of bytes, or is cut off")
    return body.reshape(shape).copy()


def _one(files: Mapping[str, bytes], name: str) -> bytes:
    found = [content for path, content in files.items() if path.endswith(f"/{name}")]
    if len(found) != 1:
        raise SampleError(f"there are {len(found)} files {name}; 1 was expected")
    return found[0]


FASHION_MNIST = PackagedData(
    name="fashion-mnist-1",
    about="Fashion-MNIST, 70,000 images of clothes",
    licence="MIT",
    packages=(
        DebianPackage(
            "dataset-fashion-mnist",
            tuple(f"{_FOLDER}/{part}-{kind}-ubyte.gz" for part in _PARTS for kind in ("images-idx3", "labels-idx1")),
        ),
    ),
    download_mb=31,
    kept_mb=56,
    read=read_images,
)
