"""How the task `motion` decodes windows of measurements."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.errors import SampleError
from edge_client.tasks.motion_physics import LENGTH, MOTIONS, RATE
from edge_client.tasks.tables import label_in_first_line, read_numbers, real_numbers

COLUMNS = ("ax", "ay", "az", "gx", "gy", "gz")


class MotionDecoder:
    """Decodes a window of 128 measurements, 50 per second."""

    def decode(self, sample: object) -> NDArray[np.float32]:
        """Return a window as float32 `[128, 6]`: specific force x, y, z in m/s^2, angular velocity x, y, z in rad/s.

        Args:
            sample: path of a CSV file of 128 rows and 6 columns (with or without a line of names), bytes of one, or
                array `[128, 6]`.

        Raises:
            SampleError: it is none of these, damaged, or of another shape.

        """
        if isinstance(sample, (str, Path)):
            name, window = str(sample), read_numbers(Path(sample))
        elif isinstance(sample, bytes):
            name, window = "the table", read_numbers(sample)
        elif isinstance(sample, np.ndarray):
            name, window = "the array", real_numbers(sample)
        else:
            raise SampleError(f"a motion is a path, bytes or an array, not {type(sample).__name__}")
        if window.shape != (LENGTH, len(COLUMNS)):
            raise SampleError(
                f"{name} has {' x '.join(map(str, window.shape))} numbers; the motion task expects {LENGTH} rows "
                f"({LENGTH / RATE:g} s) of {', '.join(COLUMNS)}"
            )
        return window

    def true_label(self, sample: object) -> str | None:
        """Return the label in the first line of a file, as those of `MotionTask.save_sample` have it."""
        return label_in_first_line(sample, MOTIONS)
