"""How the task `digits` decodes images."""

import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.images import gray_square, label_in_image

SIZE = 8
LEVELS = 16
"""Pixels are counts of dark dots, 0 to 16."""
LABELS = tuple("0123456789")


class DigitsDecoder:
    """Decodes an image of 8 x 8 pixels, light on dark."""

    def decode(self, sample: object) -> NDArray[np.uint8]:
        """Return an image as gray pixels, uint8 `[8, 8]`, dark to light.

        Args:
            sample: path of an image, bytes of one, PIL image (any mode), or array `[8, 8]` of the data set's own
                levels, 0 to 16.

        Raises:
            SampleError: it is none of these, damaged, or not 8 x 8.

        """
        pixels = gray_square(sample, SIZE, most=LEVELS, kind="a digit", expects="the digits task expects")
        return pixels.round().astype(np.uint8)

    def true_label(self, sample: object) -> str | None:
        """Return the label that an image file carries as text, as those of `DigitsTask.save_sample` do."""
        return label_in_image(sample, LABELS)
