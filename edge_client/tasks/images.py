"""Reads images that come from outside, and says in a sentence what is wrong with them."""

import io
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from edge_client.tasks.errors import SampleError

MAX_PIXELS = 16_000_000
"""Larger images are refused before they are decoded."""
_LABEL_KEY = "label"


def open_image(source: Path | bytes) -> Image.Image:
    """Return the image in a file, or in the bytes of one, decoded.

    Raises:
        SampleError: the file is missing, empty, too large, damaged or no image.

    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        if not data:
            raise SampleError(f"{name} is empty; an image was expected")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise SampleError(f"{name} has {image.width} x {image.height} pixels; {MAX_PIXELS:,} are the limit")
                image.load()
                return image.copy()
    except FileNotFoundError:
        raise SampleError(f"{name} does not exist") from None
    except UnidentifiedImageError:
        raise SampleError(f"{name} is not an image that can be read (PNG, JPEG, ...)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise SampleError(f"{name} would unpack to more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(f"{name} cannot be read: {error}") from None


def gray_pixels(image: Image.Image, name: str) -> NDArray[np.float64]:
    """Return an image of any mode as gray, 0 (dark) to 255, `[height, width]`.

    Raises:
        SampleError: the image is damaged, or its mode has no gray form.

    """
    try:
        if image.mode.startswith("I;16"):
            # Pillow would clip 16 bits to the lowest 8, and nearly every pixel would turn white.
            return np.asarray(image, dtype=np.float64) / 257
        return np.asarray(image.convert("L"), dtype=np.float64)
    except (OSError, SyntaxError, ValueError, NotImplementedError) as error:
        # Pillow decodes an opened image only here, so damage and modes without a gray form show late.
        raise SampleError(f"{name} cannot be read: {error}") from None


def gray_square(sample: object, size: int, *, most: float, kind: str, expects: str) -> NDArray[np.float64]:
    """Return a square image of any form as gray, 0 (dark) to 255, `[size, size]`.

    Args:
        sample: path of an image, bytes of one, PIL image (any mode), or array `[size, size]` of levels 0 to `most`.
        size: of each side, in pixels.
        most: the level of white in an array.
        kind: what it is to be, for the error, such as "a digit".
        expects: who wants that size, for the error, such as "the digits task expects".

    Raises:
        SampleError: it is none of these, damaged, or of another size.

    """
    if isinstance(sample, np.ndarray):
        return _levels(sample, size, most, expects) * (255 / most)
    if isinstance(sample, (str, Path)):
        image, name = open_image(Path(sample)), str(sample)
    elif isinstance(sample, bytes):
        image, name = open_image(sample), "the image"
    elif isinstance(sample, Image.Image):
        # An image that was opened from a file knows its name.
        image, name = sample, getattr(sample, "filename", "") or "the image"
    else:
        raise SampleError(f"{kind} is a path, bytes, an image or an array, not {type(sample).__name__}")
    if image.size != (size, size):
        raise SampleError(f"{name} is {image.width} x {image.height} pixels; {expects} {size} x {size}")
    return gray_pixels(image, name)


def _levels(array: NDArray[Any], size: int, most: float, expects: str) -> NDArray[np.float64]:
    if array.shape != (size, size):
        raise SampleError(f"the array has shape {list(array.shape)}; {expects} [{size}, {size}]")
    if array.dtype.kind not in "biuf":
        raise SampleError(f"the array holds {array.dtype}, not real numbers")
    levels = array.astype(np.float64)
    if not ((levels >= 0) & (levels <= most)).all():
        raise SampleError(f"the array has values outside 0 to {most:g}, or NaN")
    return levels


def save_labelled(image: Image.Image, path: Path, label: str) -> None:
    """Write an image as a PNG that carries its label as text."""
    info = PngImagePlugin.PngInfo()
    info.add_text(_LABEL_KEY, label)
    image.save(path, pnginfo=info)


def label_in_image(sample: object, labels: Collection[str]) -> str | None:
    """Return the label that an image file carries as text, if it carries one."""
    label = open_image(Path(sample)).info.get(_LABEL_KEY) if isinstance(sample, (str, Path)) else None
    return label if label in labels else None
