"""The task: a model, its data on each device, and how a raw sample becomes numbers.

Put your own in place of what stands here, from top to bottom: features, labels, model, data.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_client.tasks import SampleError
from edge_client.tasks.datasets import Dataset, DatasetTask, csv_table
from edge_client.tasks.tables import read_numbers

FEATURES = 8
DATA = "FLOWER_APP_DATA"
"""Environment variable with the path of this device's data: a CSV file, FEATURES columns of numbers and one `label`."""


class FlowerAppTask(DatasetTask):
    """Recognises the state of a machine from a reading of its sensors."""

    name = "flower-app"
    labels = ("blocked", "normal", "worn")  # in the order of the alphabet, as `csv_table` has them
    input_shape = (FEATURES,)

    def model(self) -> nn.Module:
        """Return a fresh model, which gives one output for each label."""
        return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, len(self.labels)))

    def decode(self, sample: object) -> Tensor:
        """Return a reading, float32 `[8]`, of a CSV file with one row, its bytes, or a list of numbers."""
        if isinstance(sample, (str, Path, bytes)):
            rows = read_numbers(sample if isinstance(sample, bytes) else Path(sample))
            if len(rows) != 1:
                raise SampleError(f"a reading is one row of {FEATURES} numbers; there are {len(rows)} rows")
            reading = torch.from_numpy(rows[0])
        else:
            try:
                reading = torch.as_tensor(sample, dtype=torch.float32)
            except (TypeError, ValueError, RuntimeError):
                raise SampleError(f"a reading is a list of {FEATURES} numbers, not {type(sample).__name__}") from None
        if reading.shape != self.input_shape:
            raise SampleError(f"a reading has {FEATURES} numbers; this one is {list(reading.shape)}")
        return reading

    def dataset(self) -> Dataset:
        """Return this device's samples; a fifth of them is held out."""
        path = os.environ.get(DATA)
        return csv_table(Path(path), label="label") if path else _examples(self.labels)


def _examples(labels: tuple[str, ...]) -> Dataset:
    """Return readings that are made up, so that everything runs before there are any."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(len(labels)).repeat_interleave(200)
    centres = 2 * torch.randn(len(labels), FEATURES, generator=generator)
    readings = centres[targets] + torch.randn(len(targets), FEATURES, generator=generator)
    return Dataset(readings, targets, labels)
