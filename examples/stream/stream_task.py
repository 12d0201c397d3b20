"""A task whose data are a stream: readings come over TCP while the device trains, and none is kept."""

import os
import socket
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from edge_client.tasks import Data, Partition, SampleError, Samples, Task

LABELS = ("quiet", "alarm")
HELD_OUT = 200
"""Readings that a device takes once, to try the model on."""
SILENCE_S = 10.0
"""A sensor that says nothing for so long is broken."""


def parse(line: str) -> tuple[Tensor, Tensor]:
    """Return a line's numbers, float32 `[8]`, and the position of its label."""
    line = line.strip()
    *numbers, label = line.split(",")
    try:
        return torch.tensor([float(number) for number in numbers]), torch.tensor(LABELS.index(label))
    except ValueError:
        raise SampleError(f"the sensor sent {line!r}; numbers and one of {', '.join(LABELS)} were expected") from None


class Readings(IterableDataset[tuple[Tensor, Tensor]]):
    """What the sensor at an address HOST:PORT sends, as long as it does."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        host, _, port = self.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=SILENCE_S) as connection,
            connection.makefile() as lines,
        ):
            yield from map(parse, lines)


class StreamTask(Task):
    """Tells alarms from quiet."""

    name = "stream"
    labels = LABELS
    input_shape = (8,)

    def model(self) -> nn.Module:
        """Return a small network of dense layers."""
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, len(LABELS)))

    def train_data(self, partition: Partition) -> Data:
        """Return the sensor's stream: `SENSOR` is its address, HOST:PORT."""
        return Readings(os.environ.get("SENSOR", "127.0.0.1:9100"))

    def test_data(self, partition: Partition) -> Data:
        """Return readings of a connection of its own."""
        pairs = list(islice(Readings(os.environ.get("SENSOR", "127.0.0.1:9100")), HELD_OUT))
        return Samples(torch.stack([reading for reading, _ in pairs]), torch.stack([label for _, label in pairs]))

    def decode(self, sample: object) -> Tensor:
        """Return a reading, float32 `[8]`, of a list of 8 numbers."""
        if not isinstance(sample, list) or len(sample) != 8:
            raise SampleError("a reading is a list of 8 numbers")
        return torch.tensor(sample, dtype=torch.float32)
