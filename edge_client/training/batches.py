"""Where a device's batches come from: samples in any order, by the number of the step, or a stream, as it comes."""

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.curvature.random_state import seeded
from edge_client.tasks import Data, DataError, Samples, Task
from edge_client.tasks.data import as_batches, fetch, is_indexed, iterate, next_batch, samples_in

_WHAT = "training data"
_MEASURED_SAMPLES = 256
_MEASURED_BATCHES = 4


class StreamEndedError(DataError):
    """Training data came to their end, and cannot be begun anew; the text says after how many batches."""


class BatchSource(ABC):
    """A device's training data, batch by batch."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many the device holds; 0 where a stream does not say."""

    @abstractmethod
    def batch(self, step: int) -> Samples:
        """Return the batch of a step.

        Raises:
            DataError: it cannot be had, or is no pair of inputs and targets.
            StreamEndedError: there are no more.

        """

    @abstractmethod
    def some_inputs(self) -> Tensor:
        """Return inputs that stand for all of the device's, `[n, *input_shape]`; no batch is lost by it.

        Raises:
            DataError: as `batch`.

        """


def source_of(
    task: Task, data: Data, batch_size: int, seed: int, *, whose: str = "the device", drops_rest: bool = False
) -> BatchSource:
    """Return the source of a device's batches.

    Args:
        task: whose data they are.
        data: the device's.
        batch_size: samples in a batch, unless the data are batches already.
        seed: of the device's order.
        whose: the data are, such as "device 3 of 8".
        drops_rest: whether no sample may be in two batches of a pass, nor in a batch twice: see `BatchOrder`.

    Raises:
        DataError: the device has no samples, or a stream does not say which of them are in a batch.

    """
    if samples_in(data) == 0:
        raise DataError(
            f"{whose} has no training samples: task {task.name!r} gives its partition none; train with fewer devices, "
            "or with another partition of the data"
        )
    order = BatchOrder(samples_in(data) or 1, batch_size, seed, drops_rest=drops_rest)
    if isinstance(data, Samples):
        held: Samples = data
        return IndexedBatches(task, data, lambda at, _: Samples(held.inputs[at], held.targets[at]), order)
    if is_indexed(data):
        indexed: Any = data
        return IndexedBatches(task, data, lambda at, step: fetch(task, indexed, at.tolist(), step + 1, _WHAT), order)
    if drops_rest:
        raise DataError(
            f"the training data of task {task.name!r} are a stream, which does not say which samples a batch has: a "
            "privacy budget of samples needs them in memory, or by number (__getitem__ and __len__)"
        )
    return StreamBatches(task, as_batches(data, batch_size), samples_in(data) or 0, seed, whose=whose)


class IndexedBatches(BatchSource):
    """Batches of samples that can be had in any order: see `BatchOrder`.

    Args:
        task: whose data they are.
        data: what the device holds.
        get: returns the samples at positions `[n]`, in the batch of a step.
        order: of the samples.

    """

    def __init__(self, task: Task, data: Data, get: Callable[[Tensor, int], Samples], order: "BatchOrder") -> None:
        self._task = task
        self._data = data
        self._get = get
        self._order = order

    @property
    def samples(self) -> int:
        """How many the device holds."""
        return samples_in(self._data) or 0

    def batch(self, step: int) -> Samples:
        """Return the batch of a step, whichever was asked for before."""
        return self._get(torch.from_numpy(self._order.indices(step)), step)

    def some_inputs(self) -> Tensor:
        """Return all inputs in memory; of a data set those of the first batches."""
        if isinstance(self._data, Samples):
            return self._data.inputs
        return _inputs_of(self.batch(step) for step in range(_MEASURED_BATCHES))


class StreamBatches(BatchSource):
    """Batches as an iterable gives them; at its end it is begun anew, if it can be.

    Each time it is told the number of the pass, as samplers and data sets with `set_epoch` want to be, and random
    numbers that it draws from the global generators come from the device's seed.

    Args:
        task: whose data they are.
        batches: gives pairs of inputs and targets.
        samples: how many the device holds; 0 for unknown.
        seed: of the device.
        whose: the data are.

    """

    def __init__(self, task: Task, batches: Iterable[Any], samples: int, seed: int, *, whose: str) -> None:
        self._task = task
        self._batches = batches
        self._samples = samples
        self._seed = seed
        self._whose = whose
        self._first_step: int | None = None
        self._passes = 0
        self._pass: Iterator[Any] | None = None
        self._number = 0
        """Batches that were loaded."""
        self._number_in_pass = 0
        self._kept: deque[Samples] = deque()
        """Loaded, and not trained on yet."""

    @property
    def samples(self) -> int:
        """How many the device holds; 0 for unknown."""
        return self._samples

    def batch(self, step: int) -> Samples:
        """Return the next batch, whatever the step is: the stream decides what comes when."""
        if self._first_step is None:
            self._first_step = step
        return self._kept.popleft() if self._kept else self._load()

    def some_inputs(self) -> Tensor:
        """Return the inputs of the first batches, which are trained on later."""
        while len(self._kept) < _MEASURED_BATCHES and sum(map(len, self._kept)) < _MEASURED_SAMPLES:
            try:
                self._kept.append(self._load())
            except StreamEndedError:
                if not self._kept:
                    raise
                break
        return _inputs_of(self._kept)

    def _load(self) -> Samples:
        if self._pass is None:
            self._begin_pass()
        batch = self._next()
        if batch is None:
            if not self._number:
                raise DataError(
                    f"{self._whose} has no training samples: those of task {self._task.name!r} give no batch (a loader "
                    "with drop_last gives none of fewer samples than its batch_size)"
                )
            if not self._begins_anew:
                raise self._ended()
            self._begin_pass()
            batch = self._next()
            if batch is None:  # what it went through was used up
                raise self._ended()
        self._number += 1
        self._number_in_pass += 1
        return batch

    @property
    def _begins_anew(self) -> bool:
        return not isinstance(self._batches, Iterator)

    def _begin_pass(self) -> None:
        self._number_in_pass = 0
        with self._seeded():
            for part in _parts(self._batches):
                if hasattr(part, "set_epoch"):
                    part.set_epoch(self._passes)
            self._pass = iterate(self._task, self._batches, _WHAT)
        self._passes += 1

    def _next(self) -> Samples | None:
        assert self._pass is not None
        with self._seeded():
            return next_batch(self._task, self._pass, self._number + 1, _WHAT)

    def _seeded(self) -> AbstractContextManager[None]:
        """Seed what draws from the global generators, such as the shuffling of a loader that was given no generator."""
        text = f"{self._seed} {self._first_step} {self._passes} {self._number_in_pass}"
        return seeded(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big"), ())

    def _ended(self) -> StreamEndedError:
        return StreamEndedError(
            f"the training data of task {self._task.name!r} ended after {self._number} batches on {self._whose}, and "
            "cannot be gone through again: give an object whose __iter__ begins anew, or train fewer steps"
        )


def _parts(batches: object) -> Iterator[Any]:
    """Return what may want to know the number of the pass."""
    yield batches
    for name in ("sampler", "batch_sampler", "dataset"):
        if hasattr(batches, name):
            yield getattr(batches, name)


def _inputs_of(batches: Iterable[Samples]) -> Tensor:
    return torch.cat([batch.inputs for batch in batches])


class BatchOrder:
    """Goes through a device's samples in a new order each time, in batches of equal size.

    The order depends on seed and step alone, so that training can go on at any step. A device with fewer samples than
    a batch has them all in each.

    Args:
        samples: that the device has.
        batch_size: samples in a batch.
        seed: of the order.
        drops_rest: whether a time ends when fewer samples than a batch are left; else a batch may begin with them, and
            go on in the new order.

    """

    def __init__(self, samples: int, batch_size: int, seed: int, *, drops_rest: bool = False) -> None:
        if samples < 1:
            raise ValueError("the device has no training samples")
        self._samples = samples
        self._batch_size = min(batch_size, samples)
        self._taken = samples - samples % self._batch_size if drops_rest else samples
        """Samples that are taken each time."""
        self._seed = seed
        self._pass = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the positions of the samples in a step's batch, `[batch_size]`."""
        first = step * self._batch_size
        return np.array([self._sample(position) for position in range(first, first + self._batch_size)])

    def _sample(self, position: int) -> int:
        number, place = divmod(position, self._taken)
        if number != self._pass:
            self._pass = number
            self._order = np.random.default_rng((self._seed, number)).permutation(self._samples)
        return int(self._order[place])
