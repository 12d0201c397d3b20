"""Data sets of your own for tasks of your own: folders of labelled files, CSV and NPZ, and a part that is held out."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.tasks.labelled_files import files_by_label
from edge_client.tasks.partition import part
from edge_client.tasks.tables import read_npz, read_rows, to_numbers
from edge_client.tasks.task import Partition, SampleError, Samples, Task, TaskError

_SPLIT_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Labelled samples: decoded ones `[n, *raw_shape]`, and the position of each one's label, int64 `[n]`.

    Sequences have a label for each place, `[n, places]`. They need `is_held_out`, and `groups`, of which a skewed
    partition then gives a device more or fewer.
    """

    raw: Tensor
    targets: Tensor
    labels: tuple[str, ...]
    groups: Tensor | None = None
    """Speaker, place or sensor of each sample, int64 `[n]`, for the partition `natural`."""
    is_held_out: Tensor | None = None
    """Which samples are held out, bool `[n]`, where the data say so themselves."""


class DatasetTask(Task):
    """A task whose samples are all loaded at once. A subclass says what they are, and what model recognises them."""

    test_fraction = 0.2
    """Part of the samples of each label that is held out, the same on every device and for every seed, where the data
    set does not say which are."""

    @abstractmethod
    def dataset(self) -> Dataset:
        """Return all samples; it is asked once."""

    def train_data(self, partition: Partition) -> Samples:
        """Return a device's share of the samples that are not held out."""
        return self._share(self._split[0], partition)

    def test_data(self, partition: Partition) -> Samples:
        """Return a device's share of the samples that are, spread alike over the devices."""
        return self._share(self._split[1], Partition(partition.index, partition.count, "iid", seed=partition.seed))

    @cached_property
    def loaded(self) -> Dataset:
        """The samples.

        Raises:
            TaskError: their labels are not those of the task.

        """
        loaded = self.dataset()
        if tuple(self.labels) != loaded.labels:
            raise TaskError(
                f"task {self.name!r} recognises {', '.join(self.labels)}, but its samples are labelled "
                f"{', '.join(loaded.labels)}"
            )
        return loaded

    @cached_property
    def held_out(self) -> NDArray[np.int64]:
        """Positions of the held-out samples in the data set, ascending."""
        return self._split[1]

    def held_out_sample(self, index: int, kind: str) -> int:
        """Return the position in the data set of held-out sample number `index`.

        Args:
            index: from 0.
            kind: what it is, for the error, such as "window".

        Raises:
            IndexError: there is no such held-out sample.

        """
        if not 0 <= index < len(self.held_out):
            raise IndexError(f"there is no held-out {kind} {index}; there are {len(self.held_out)}, numbered from 0")
        return int(self.held_out[index])

    @cached_property
    def _split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.loaded.is_held_out is not None:
            chosen = self.loaded.is_held_out.numpy()
            return np.flatnonzero(~chosen), np.flatnonzero(chosen)
        targets = self.loaded.targets.numpy()
        rng = np.random.default_rng(_SPLIT_SEED)
        held_out = np.zeros(len(targets), dtype=bool)
        for label in np.unique(targets):
            members = rng.permutation(np.flatnonzero(targets == label))
            held_out[members[: max(1, round(self.test_fraction * len(members)))]] = True
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def _share(self, of: NDArray[np.int64], partition: Partition) -> Samples:
        groups = None if self.loaded.groups is None else self.loaded.groups.numpy()[of]
        targets = self.loaded.targets.numpy()[of]
        chosen = of[part(groups if targets.ndim > 1 and groups is not None else targets, partition, groups)]
        with torch.no_grad():
            return Samples(self.preprocess(self.loaded.raw[chosen]), self.loaded.targets[chosen])


def image_folder(folder: Path, decode: Callable[[Path], Tensor]) -> Dataset:
    """Return the images (or other files) of a folder with one folder per label, as `torchvision`'s ImageFolder has it.

    Args:
        folder: holds `LABEL/FILE` for each file.
        decode: turns a file into numbers, `[*raw_shape]`; a task's own `decode`.

    Raises:
        SampleError: there is no such folder, no label in it, or a file cannot be used.

    """
    by_label = files_by_label(folder)
    raw = torch.stack([decode(file) for files in by_label.values() for file in files])
    targets = torch.tensor([place for place, files in enumerate(by_label.values()) for _ in files])
    return Dataset(raw, targets, tuple(by_label))


def csv_table(path: Path, label: str, columns: Sequence[str] | None = None) -> Dataset:
    """Return the rows of a CSV file whose first line names its columns.

    Args:
        path: the file.
        label: name of the column that holds the labels.
        columns: names of the columns that hold the numbers of a sample, in their order; all others unless given.

    Raises:
        SampleError: the file cannot be used, or a column is missing; the text names it.

    """
    header, *rows = read_rows(path)
    columns = [name for name in header if name != label] if columns is None else list(columns)
    for name in (label, *columns):
        if name not in header:
            raise SampleError(f"{path} has no column {name!r}; it has {', '.join(header)}")
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise SampleError(f"{path}: row {line} has {len(row)} columns, the first line {len(header)}")
    places = [header.index(name) for name in columns]
    numbers = to_numbers(([row[place] for place in places] for row in rows), str(path), first_line=2)
    texts = [row[header.index(label)] for row in rows]
    labels = tuple(sorted(set(texts)))
    return Dataset(torch.from_numpy(numbers), torch.tensor([labels.index(text) for text in texts]), labels)


def npz_arrays(path: Path, samples: str = "x", targets: str = "y", labels: Sequence[str] | None = None) -> Dataset:
    """Return the samples of an NPZ file.

    Args:
        path: the file.
        samples: name of the array of samples, `[n, *raw_shape]`.
        targets: name of the array of labels, `[n]`: integers from 0, or texts.
        labels: what integers mean; their decimals unless given.

    Raises:
        SampleError: the file cannot be used, or an array is missing or does not fit.

    """
    arrays = read_npz(path)
    for name in (samples, targets):
        if name not in arrays:
            raise SampleError(f"{path} has no array {name!r}; it has {', '.join(arrays)}")
    raw, given = arrays[samples], arrays[targets]
    if given.ndim != 1 or len(given) != len(raw):
        raise SampleError(f"{path}: {targets!r} is {list(given.shape)}; {samples!r} has {len(raw)} samples")
    if raw.dtype.kind not in "biuf" or (raw.dtype.kind == "f" and not np.isfinite(raw).all()):
        raise SampleError(f"{path}: {samples!r} holds NaN, infinity, or no numbers at all ({raw.dtype})")
    if given.dtype.kind in "US":
        names = tuple(sorted({str(text) for text in given}))
        places = np.array([names.index(str(text)) for text in given])
    elif given.dtype.kind in "iu":
        names = tuple(labels) if labels is not None else tuple(str(k) for k in range(int(given.max(initial=-1)) + 1))
        places = given.astype(np.int64)
        if len(places) and not (places.min() >= 0 and places.max() < len(names)):
            raise SampleError(
                f"{path}: {targets!r} goes from {places.min()} to {places.max()}; there are {len(names)} labels"
            )
    else:
        raise SampleError(f"{path}: {targets!r} holds {given.dtype}; integers or texts were expected")
    return Dataset(torch.from_numpy(np.ascontiguousarray(raw)), torch.from_numpy(places.astype(np.int64)), names)
