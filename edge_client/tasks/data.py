"""Data in all the forms that a task may give them in, gone through batch by batch, each of them checked."""

from collections.abc import Iterable, Iterator
from itertools import count
from multiprocessing import get_context, get_start_method
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from edge_client.tasks.task import Data, Samples, Task, TaskError


class DataError(TaskError):
    """A task's data cannot be used; the text names the task, and says which batch, or whose data."""


def batches_of(task: Task, data: Data, batch_size: int, *, what: str = "data") -> Iterator[Samples]:
    """Go through data once, in their own order.

    Args:
        task: whose data they are.
        data: a loader's batches have the size that it gives them.
        batch_size: of the others.
        what: the data are called, such as "held-out data".

    Raises:
        DataError: the data fail, or a batch is no pair of inputs and targets.

    """
    if isinstance(data, Samples):
        for first in range(0, len(data), batch_size):
            yield Samples(data.inputs[first : first + batch_size], data.targets[first : first + batch_size])
        return
    batches = iterate(task, as_batches(data, batch_size), what)
    for number in count(1):
        batch = next_batch(task, batches, number, what)
        if batch is None:
            return
        yield batch


def in_memory(task: Task, data: Data) -> Samples:
    """Return all samples of data that end.

    Raises:
        DataError: see `batches_of`.

    """
    if isinstance(data, Samples):
        return data
    batches = list(batches_of(task, data, 256))
    if not batches:
        return Samples(torch.empty(0, *task.input_shape), torch.empty(0, dtype=torch.int64))
    return Samples(torch.cat([batch.inputs for batch in batches]), torch.cat([batch.targets for batch in batches]))


def first_inputs(task: Task, data: Data, samples: int) -> Tensor:
    """Return the inputs of the first samples, `[n, *input_shape]`, at most so many.

    Raises:
        DataError: see `batches_of`, or there are none.

    """
    inputs: list[Tensor] = []
    for batch in batches_of(task, data, samples):
        inputs.append(batch.inputs)
        if sum(map(len, inputs)) >= samples:
            break
    if not inputs:
        raise DataError(f"the data of task {task.name!r} have no samples")
    return torch.cat(inputs)[:samples]


def is_indexed(data: Data) -> bool:
    """Whether data are a data set whose samples can be had in any order."""
    return isinstance(data, TorchDataset) and not isinstance(data, IterableDataset)


def as_batches(data: Data, batch_size: int) -> Iterable[Any]:
    """Return data as an iterable of batches: of a data set, batches of its samples."""
    if isinstance(data, TorchDataset):
        return DataLoader(data, batch_size)
    if isinstance(data, Samples):
        raise TypeError("samples in memory are no iterable of batches")
    return data


def samples_in(data: Data) -> int | None:
    """Return how many samples data have in one pass; None for a stream, which does not say."""
    counted: Any = data
    if isinstance(data, DataLoader):
        if data.batch_sampler is None:  # its data set has batches
            return None
        counted = data.dataset if isinstance(data.dataset, IterableDataset) else data.sampler
    elif not isinstance(data, Samples | TorchDataset):
        return None  # the length of another iterable is that of its batches
    try:
        return len(counted)
    except (TypeError, NotImplementedError):
        return None


def iterate(task: Task, batches: Iterable[Any], what: str) -> Iterator[Any]:
    """Begin a pass through batches.

    Raises:
        DataError: they cannot be gone through.

    """
    if isinstance(batches, DataLoader):
        _start_workers_apart(batches)
    try:
        return iter(batches)
    except Exception as error:  # a user's code runs here, and may raise anything
        hint = ""
        if "pickle" in str(error):
            hint = (
                "; workers do not share this process's memory: take the data set, collate_fn and worker_init_fn from "
                "the top of a module, no lambdas, or give the loader multiprocessing_context='fork'"
            )
        raise DataError(f"the {what} of task {task.name!r} cannot be iterated: {_describe(error)}{hint}") from error


def _start_workers_apart(loader: "DataLoader[Any]") -> None:
    """Let a loader's workers be forked off a process of one thread, unless the loader says how they are started.

    Those that are forked off this process, beside the threads of gRPC, may hang or die at once.
    """
    if loader.num_workers and loader.multiprocessing_context is None and get_start_method() == "fork":
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        loader.multiprocessing_context = context


def next_batch(task: Task, batches: Iterator[Any], number: int, what: str) -> Samples | None:
    """Return the next batch of a pass, or None at its end.

    Args:
        task: whose data they are.
        batches: the pass.
        number: of the batch, from 1, for errors.
        what: the data are called.

    Raises:
        DataError: the data fail, or the batch is no pair of inputs and targets.

    """
    place = f"batch {number} of the {what} of task {task.name!r}"
    try:
        batch = next(batches)
    except StopIteration:
        return None
    except Exception as error:  # so does a loader's worker
        # What a worker itself raises comes with its name; the pipe to one that was killed breaks anyhow.
        is_pipe = isinstance(error, ConnectionError | EOFError) and "DataLoader worker" not in str(error)
        reason = "; a worker of the data loader was killed, or died" if is_pipe else ""
        raise DataError(f"{place} could not be loaded: {_describe(error)}{reason}") from error
    return _checked(task, batch, place)


def fetch(task: Task, data: "TorchDataset[Any]", positions: Iterable[int], number: int, what: str) -> Samples:
    """Return samples of an indexed data set as batch `number`.

    Raises:
        DataError: the data set fails, or its samples are no pairs of an input and a target.

    """
    place = f"batch {number} of the {what} of task {task.name!r}"
    try:
        batch = default_collate([data[int(position)] for position in positions])
    except Exception as error:  # and so does a data set
        raise DataError(f"{place} could not be loaded: {_describe(error)}") from error
    return _checked(task, batch, place)


def _checked(task: Task, batch: object, place: str) -> Samples:
    shape = ", ".join(map(str, ("n", *task.input_shape)))
    expected = f"expected is a pair of tensors, inputs [{shape}] and targets [n, ...]"
    if isinstance(batch, Samples):
        batch = (batch.inputs, batch.targets)
    if not isinstance(batch, list | tuple):
        raise DataError(f"{place} is of type {type(batch).__name__}; {expected}")
    if len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        kinds = ", ".join(type(part).__name__ for part in batch)
        raise DataError(f"{place} has {len(batch)} parts ({kinds}); {expected}")
    inputs, targets = batch
    if inputs.shape[1:] != task.input_shape or not targets.dim() or len(inputs) != len(targets):
        raise DataError(f"{place} has inputs {list(inputs.shape)} and targets {list(targets.shape)}; {expected}")
    if not len(inputs):
        raise DataError(f"{place} has no samples; leave such batches out")
    return Samples(inputs, targets)


def _describe(error: Exception) -> str:
    # Torch puts a worker's traceback into the text, with what was raised in its last line.
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    raised = lines[-1].strip() if "Traceback (most recent call last)" in str(error) else " ".join(map(str.strip, lines))
    return raised if raised.startswith(type(error).__name__) else f"{type(error).__name__}: {raised}".rstrip(": ")
