"""Snapshots on their way from a live member to those that heal: one at a time, in a time that suits its size."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.limits import LimitError

from coordinator.session.refusal import RefusedError, Status

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class HeldSnapshot:
    """A device's state before a step."""

    header: pb.SnapshotHeader
    data: bytes | bytearray

    def chunks(self) -> Iterator[pb.SnapshotChunk]:
        """Yield it in parts; the first one carries the header."""
        view = memoryview(self.data)
        yield pb.SnapshotChunk(header=self.header, data=bytes(view[:CHUNK_BYTES]))
        for begin in range(CHUNK_BYTES, len(view), CHUNK_BYTES):
            yield pb.SnapshotChunk(data=bytes(view[begin : begin + CHUNK_BYTES]))


class Upload:
    """A state on its way from a member.

    Args:
        device: the member.
        limit_bytes: largest state that is taken.
        patience_s: seconds without a part after which it ends; for so long it may also be slower than it must.
        deadline_s: seconds for the whole of it. It must be so far on at any time that it can end by then.

    """

    def __init__(self, device: str, limit_bytes: int, patience_s: float, deadline_s: float) -> None:
        self.device = device
        self._limit_bytes = limit_bytes
        self._patience_s = patience_s
        self._deadline_s = deadline_s
        self._is_superseded = False
        self._wait: asyncio.Timeout | None = None

    def supersede(self) -> None:
        """End it: another state is taken instead."""
        self._is_superseded = True
        if self._wait is not None and not self._wait.expired():
            self._wait.reschedule(asyncio.get_running_loop().time())

    async def collect(self, chunks: AsyncIterator[pb.SnapshotChunk]) -> HeldSnapshot:
        """Put together what the device hands in.

        Raises:
            RefusedError: it is too large, too slow, or not what its header says; or another is taken.

        """
        header: pb.SnapshotHeader | None = None
        data, digest = bytearray(), hashlib.sha256()
        began = asyncio.get_running_loop().time()
        while (chunk := await self._next(chunks)) is not None:
            if header is None:
                header = chunk.header
                self._check_size(header.size)
            elif not chunk.data:
                raise self._refusal(Status.INVALID_ARGUMENT, "the snapshot has a part without data")
            data += chunk.data
            digest.update(chunk.data)
            if len(data) > header.size:
                break
            elapsed_s = asyncio.get_running_loop().time() - began
            if elapsed_s > self._patience_s and len(data) * self._deadline_s < header.size * elapsed_s:
                raise self._refusal(
                    Status.DEADLINE_EXCEEDED,
                    f"{len(data)} of {header.size} bytes of the snapshot came in {elapsed_s:.1f} s; all of it may take "
                    f"{self._deadline_s:g} s",
                )
        if header is None or len(data) != header.size or digest.digest() != header.sha256:
            raise self._refusal(
                Status.INVALID_ARGUMENT, f"the snapshot is not what its header says ({len(data)} bytes came)"
            )
        return HeldSnapshot(header, data)

    async def _next(self, chunks: AsyncIterator[pb.SnapshotChunk]) -> pb.SnapshotChunk | None:
        """Return the next part; None if there are no more."""
        try:
            async with asyncio.timeout(self._patience_s) as self._wait:
                if self._is_superseded:
                    raise TimeoutError
                return await anext(chunks, None)
        except LimitError as error:
            raise self._refusal(Status.INVALID_ARGUMENT, str(error)) from None
        except TimeoutError:
            if self._is_superseded:
                raise self._refusal(Status.ABORTED, "another state is taken instead") from None
            raise self._refusal(
                Status.DEADLINE_EXCEEDED, f"no part of the snapshot came for {self._patience_s:g} s"
            ) from None

    def _check_size(self, size: int) -> None:
        if size > self._limit_bytes:
            raise self._refusal(
                Status.RESOURCE_EXHAUSTED, f"a snapshot of {size} bytes is over the limit of {self._limit_bytes}"
            )

    def _refusal(self, status: Status, reason: str) -> RefusedError:
        return RefusedError(status, f"device {self.device!r}: {reason}")


class SnapshotBroker:
    """Knows which member was asked for its state, and holds the one that came while somebody needs it."""

    def __init__(self) -> None:
        self.snapshot: HeldSnapshot | None = None
        self.last: str | None = None
        """Who was asked last."""
        self._donor: str | None = None
        """Who was asked, and has not begun to answer."""
        self._asked_at: float | None = None
        """When somebody was asked whose state has not come yet."""
        self._upload: Upload | None = None
        self._changed = asyncio.Event()

    def ask(self, donor: str, now: float) -> None:
        """Note that a member is asked; it may hand its state in once."""
        self.last = self._donor = donor
        self._asked_at = now

    def is_waiting(self, now: float, patience_s: float) -> bool:
        """Whether a state is on its way, or a member was asked within the last `patience_s` seconds."""
        return self._upload is not None or (self._asked_at is not None and now < self._asked_at + patience_s)

    async def take(self, upload: Upload, chunks: AsyncIterator[pb.SnapshotChunk]) -> HeldSnapshot:
        """Take in what a member hands in, in place of what is on its way.

        Raises:
            RefusedError: it was not asked, or its state is not taken.

        """
        if self._donor != upload.device:
            raise RefusedError(
                Status.FAILED_PRECONDITION, f"device {upload.device!r} hands in a state that nobody asked for"
            )
        self._donor = None
        if self._upload is not None:
            self._upload.supersede()
        self._upload = upload
        try:
            self.snapshot = await upload.collect(chunks)
        finally:
            if self._upload is upload:
                self._upload = None
        self._asked_at = None
        self.wake()
        return self.snapshot

    def forget(self, donor: str) -> None:
        """Expect no answer of a member that is gone."""
        if self._donor == donor:
            self._donor = self._asked_at = None
        if self._upload is not None and self._upload.device == donor:
            self._upload.supersede()
            self._asked_at = None

    def ask_nobody(self) -> None:
        """Expect no answer of anybody."""
        self._donor = self._asked_at = None

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
