"""Snapshots on their way from a live member to those that heal."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from edgenewton.v1 import exchange_pb2 as pb

from coordinator.session.refusal import RefusedError, Status

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class HeldSnapshot:
    """A device's state before a step."""

    header: pb.SnapshotHeader
    data: bytes

    def chunks(self) -> Iterator[pb.SnapshotChunk]:
        """Yield it in parts; the first one carries the header."""
        view = memoryview(self.data)
        yield pb.SnapshotChunk(header=self.header, data=bytes(view[:CHUNK_BYTES]))
        for begin in range(CHUNK_BYTES, len(view), CHUNK_BYTES):
            yield pb.SnapshotChunk(data=bytes(view[begin : begin + CHUNK_BYTES]))


class SnapshotBroker:
    """Knows which member was asked for its state, and holds the one that came while somebody needs it."""

    def __init__(self) -> None:
        self.snapshot: HeldSnapshot | None = None
        self.donor: str | None = None
        """Who was asked, and has not answered."""
        self._asked_at = 0.0
        self._changed = asyncio.Event()

    def ask(self, donor: str, now: float) -> None:
        """Note that a member is asked."""
        self.donor, self._asked_at = donor, now

    def is_waiting(self, now: float, patience_s: float) -> bool:
        """Whether a member was asked within the last `patience_s` seconds."""
        return self.donor is not None and now < self._asked_at + patience_s

    def put(self, snapshot: HeldSnapshot) -> None:
        """Take what a member handed in."""
        self.snapshot, self.donor = snapshot, None
        self.wake()

    def forget(self, donor: str) -> None:
        """Expect no answer of a member that is gone."""
        if self.donor == donor:
            self.donor = None

    def ask_nobody(self) -> None:
        """Expect no answer of anybody."""
        self.donor = None

    def drop(self) -> None:
        """Give the memory up."""
        self.snapshot = None

    def wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Wait for a change.

        Raises:
            TimeoutError: none came in time.

        """
        await asyncio.wait_for(self._changed.wait(), timeout_s)


async def collect_snapshot(device: str, chunks: AsyncIterator[pb.SnapshotChunk], limit_bytes: int) -> HeldSnapshot:
    """Put together what a device hands in.

    Raises:
        RefusedError: it is too large, or not what its header says.

    """
    header: pb.SnapshotHeader | None = None
    data = bytearray()
    async for chunk in chunks:
        if header is None:
            header = chunk.header
            if header.size > limit_bytes:
                raise RefusedError(
                    Status.RESOURCE_EXHAUSTED,
                    f"device {device!r}: a snapshot of {header.size} bytes is over the limit of {limit_bytes}",
                )
        data += chunk.data
        if len(data) > header.size:
            break
    if header is None or len(data) != header.size or hashlib.sha256(data).digest() != header.sha256:
        raise RefusedError(
            Status.INVALID_ARGUMENT,
            f"device {device!r}: the snapshot is not what its header says ({len(data)} bytes came)",
        )
    return HeldSnapshot(header, bytes(data))
