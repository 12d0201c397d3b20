"""Reads images that come from outside, and says in a sentence what is wrong with them."""

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from edge_client.tasks.task import SampleError

MAX_PIXELS = 16_000_000
"""Larger images are refused before they are decoded."""


def open_image(path: Path) -> Image.Image:
    """Return the image in a file, decoded.

    Raises:
        SampleError: the file is missing, empty, too large, damaged or no image.

    """
    try:
        if path.stat().st_size == 0:
            raise SampleError(f"{path} is empty; an image was expected")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise SampleError(f"{path} has {image.width} x {image.height} pixels; {MAX_PIXELS:,} are the limit")
                image.load()
                return image.copy()
    except FileNotFoundError:
        raise SampleError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise SampleError(f"{path} is not an image that can be read (PNG, JPEG, ...)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise SampleError(f"{path} would unpack to more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(f"{path} cannot be read: {error}") from None
