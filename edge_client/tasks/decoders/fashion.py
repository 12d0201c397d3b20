"""How the tasks on Fashion-MNIST decode images."""

import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.images import gray_square, label_in_image

SIZE = 28
LABELS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class FashionDecoder:
    """Decodes an image of 28 x 28 pixels, light on dark."""

    def decode(self, sample: object) -> NDArray[np.uint8]:
        """Return an image as gray pixels, uint8 `[28, 28]`, dark to light.

        Args:
            sample: path of an image, bytes of one, PIL image (any mode), or array `[28, 28]` of levels 0 to 255.

        Raises:
            SampleError: it is none of these, damaged, or not 28 x 28.

        """
        pixels = gray_square(sample, SIZE, most=255, kind="an article", expects="the fashion tasks expect")
        return pixels.round().astype(np.uint8)

    def true_label(self, sample: object) -> str | None:
        """Return the label that an image file carries as text, as those of `FashionTask.save_sample` do."""
        return label_in_image(sample, LABELS)
