"""Tensors on their way from the hardware that computes them into the host's memory, from which they are sent.

Those of CUDA are copied by a stream of their own into pinned memory, while backward computes the next ones. Those of
the CPU are there at once.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from edge_client.exchange import TensorKey


class Arrival(Protocol):
    """Tells when a copy is whole, as `torch.cuda.Event` does."""

    def query(self) -> bool:
        """Whether it is."""

    def synchronize(self) -> None:
        """Wait for it."""


class _Copy(NamedTuple):
    key: TensorKey
    host: Tensor
    arrival: Arrival | None
    """None for what is whole already."""


class HostCopies:
    """Copies in the order in which they were begun.

    Args:
        copy: begins one; returns it, and what tells when it is whole. None for the way of the tensor's device.

    """

    def __init__(self, copy: Callable[[Tensor], tuple[Tensor, Arrival | None]] | None = None) -> None:
        self._copy = copy if copy is not None else _HostCopier()
        self._under_way: deque[_Copy] = deque()

    def __contains__(self, key: TensorKey) -> bool:
        return any(copy.key == key for copy in self._under_way)

    def begin(self, key: TensorKey, value: Tensor) -> None:
        """Begin the copy of a tensor, which is not to be written to before its copy is whole."""
        self._under_way.append(_Copy(key, *self._copy(value.detach())))

    def arrived(self, *, waits: bool = False) -> Iterator[tuple[TensorKey, Tensor]]:
        """Yield the first ones, up to one that is not whole yet, and forget them.

        Args:
            waits: whether it is waited for, so that all are yielded.

        """
        while self._under_way:
            key, host, arrival = self._under_way[0]
            if arrival is not None:
                if waits:
                    arrival.synchronize()
                elif not arrival.query():
                    return
            self._under_way.popleft()
            yield key, host

    def forget(self) -> None:
        """Forget what is under way."""
        self._under_way.clear()


class _HostCopier:
    """Begins copies as suits the tensor's device."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __call__(self, value: Tensor) -> tuple[Tensor, Arrival | None]:
        if value.device.type != "cuda":
            return value.cpu(), None
        stream = self._streams.get(value.device)
        if stream is None:
            stream = self._streams[value.device] = torch.cuda.Stream(value.device)  # type: ignore[no-untyped-call]
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(stream):
            host.copy_(value, non_blocking=True)
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record(stream)
        value.record_stream(stream)  # its memory is not given to another tensor before the copy is whole
        return host, arrival
