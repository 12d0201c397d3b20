"""Reads images that come from outside, and says in a sentence what is wrong with them."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edge_client.tasks.task import SampleError

MAX_PIXELS = 16_000_000
"""Larger images are refused before they are decoded."""


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
