"""A device's state on its way to and from the coordinator."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from edgenewton.v1 import exchange_pb2 as pb

_CHUNK_BYTES = 1 << 20
_UPLOAD_TIMEOUT_S = 60.0

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Snapshot:
    """A state that came; without data this device's own state is that of the session."""

    header: pb.SnapshotHeader
    data: bytes
    is_intact: bool

    @property
    def step(self) -> int:
        """The first step to take from it."""
        return self.header.step


async def download(stub: Any, metadata: Metadata, timeout_s: float) -> Snapshot:
    """Fetch the state of a live member.

    Raises:
        grpc.RpcError: the coordinator is gone, or has none within `timeout_s`.

    """
    header = pb.SnapshotHeader()
    data = bytearray()
    async for chunk in stub.DownloadSnapshot(pb.SnapshotRequest(), metadata=metadata, timeout=timeout_s):
        if chunk.HasField("header"):
            header = chunk.header
        data += chunk.data
    is_intact = not header.size or hashlib.sha256(data).digest() == header.sha256
    return Snapshot(header, bytes(data), is_intact)


async def upload(
    stub: Any, metadata: Metadata, step: int, state: bytes, sealing: pb.SnapshotHeader | None = None
) -> None:
    """Hand a state in; `sealing` has what its readers need if it is sealed.

    Raises:
        grpc.RpcError: the coordinator is gone, or does not take it.

    """

    async def chunks() -> AsyncIterator[pb.SnapshotChunk]:
        header = pb.SnapshotHeader(step=step, size=len(state), sha256=hashlib.sha256(state).digest())
        if sealing is not None:
            header.MergeFrom(sealing)
        yield pb.SnapshotChunk(header=header)
        for begin in range(0, len(state), _CHUNK_BYTES):
            yield pb.SnapshotChunk(data=state[begin : begin + _CHUNK_BYTES])

    await stub.UploadSnapshot(chunks(), metadata=metadata, timeout=_UPLOAD_TIMEOUT_S)
