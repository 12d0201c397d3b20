"""A small task whose training and test data a test gives in whatever form it likes."""

import os

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from edge_client.tasks import Samples, Task


def samples(count, seed=0):
    """Return so many samples of two classes that a line separates."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return Samples(inputs, (inputs.sum(dim=1) > 0).long())


class OwnData(Task):
    """Its class attributes give the data of each partition."""

    name = "own-data"
    labels = ("low", "high")
    input_shape = (4,)

    @staticmethod
    def train(partition):
        return samples(40, seed=partition.index)

    @staticmethod
    def test(partition):
        return samples(20, seed=99)

    def model(self):
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def train_data(self, partition):
        return type(self).train(partition)

    def test_data(self, partition):
        return type(self).test(partition)

    def decode(self, sample):
        return torch.as_tensor(sample, dtype=torch.float32)


class Pairs(Dataset):
    """An indexed data set."""

    def __init__(self, of):
        self._of = of
        self.seen = []

    def __len__(self):
        return len(self._of)

    def __getitem__(self, index):
        self.seen.append(index)
        return self._of.inputs[index], self._of.targets[index]


class Sensor(IterableDataset):
    """A stream of single samples; each worker of a loader has its share."""

    def __init__(self, of, fails_at=None, *, is_killed=False):
        self._of = of
        self._fails_at = fails_at
        self._is_killed = is_killed
        self.passes = []

    def set_epoch(self, number):
        self.passes.append(number)

    def __iter__(self):
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, len(self._of), every):
            if index == self._fails_at:
                if self._is_killed:
                    os._exit(9)
                raise OSError("the sensor does not answer")
            yield self._of.inputs[index], self._of.targets[index]
