"""How a device hands in its weights without waiting for anybody, and how another process reads them."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Record(NamedTuple):
    """What the first device has used so far."""

    seconds: float = 0.0
    processor_s: float = 0.0
    batches: int = 0
    exchanges: int = 0
    bytes: float = 0.0
    """The mean of both directions."""


@dataclass(frozen=True)
class Snapshot:
    """Where a training stood after an exchange."""

    record: Record
    weights: bytes
    """All parameters and buffers, as float32."""


class SnapshotWriter:
    """Sends snapshots from a thread of its own: a reader that is late must not hold the training up."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def write(self, record: Record, model: nn.Module) -> None:
        """Take a copy of the model; returns at once."""
        flat = torch.cat([tensor.detach().flatten().float() for tensor in _tensors(model)])
        self._waiting.put(Snapshot(record, flat.numpy().tobytes()))

    def close(self) -> None:
        """Wait until everything is sent."""
        self._waiting.put(None)
        self._thread.join()
        self._connection.close()

    def _send(self) -> None:
        while (snapshot := self._waiting.get()) is not None:
            self._connection.send(snapshot)


def read_snapshots(connection: Connection) -> Iterator[Snapshot]:
    """Yield what is sent, until the sender closes, or is killed in the middle of it."""
    while True:
        try:
            snapshot: Snapshot = connection.recv()
        except (EOFError, OSError):
            return
        yield snapshot


@torch.no_grad()
def put_weights(model: nn.Module, weights: bytes) -> None:
    """Write a snapshot's weights into a model."""
    tensors = _tensors(model)
    flat = torch.from_numpy(np.frombuffer(weights, np.float32).copy())
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in sorted(model.state_dict().items())]
