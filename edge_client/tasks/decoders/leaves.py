"""How the task `leaves` decodes outlines."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.errors import SampleError
from edge_client.tasks.tables import label_in_first_line, read_numbers, real_numbers

LENGTH = 427
SPECIES = (
    "Acer circinatum",
    "Acer glabrum",
    "Acer macrophyllum",
    "Acer negundo",
    "Quercus garryana",
    "Quercus kelloggii",
)
"""In the order of the archive's classes 1 to 6."""


class LeavesDecoder:
    """Decodes an outline: 427 distances from a leaf's centre."""

    def decode(self, sample: object) -> NDArray[np.float32]:
        """Return an outline, float32 `[427]`.

        Args:
            sample: path of a CSV file of 427 numbers in one column or row, bytes of one, or array `[427]`.

        Raises:
            SampleError: it is none of these, damaged, constant, or of another length.

        """
        if isinstance(sample, (str, Path)):
            name, numbers = str(sample), read_numbers(Path(sample))
        elif isinstance(sample, bytes):
            name, numbers = "the table", read_numbers(sample)
        elif isinstance(sample, np.ndarray):
            name, numbers = "the array", real_numbers(sample)
        else:
            raise SampleError(f"a leaf is a path, bytes or an array, not {type(sample).__name__}")
        if sorted(numbers.shape) not in ([LENGTH], [1, LENGTH]):
            shape = " x ".join(map(str, numbers.shape))
            raise SampleError(f"{name} has {shape} numbers; the leaves task expects {LENGTH}, the outline of a leaf")
        if np.ptp(numbers) == 0:
            raise SampleError(f"{name} is no outline: all its numbers are alike")
        return numbers.reshape(LENGTH)

    def true_label(self, sample: object) -> str | None:
        """Return the label in the first line of a file, as those of `LeavesTask.save_sample` have it."""
        return label_in_first_line(sample, SPECIES)
