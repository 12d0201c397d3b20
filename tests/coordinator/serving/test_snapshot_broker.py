"""States on their way: one at a time, once for each ask, and not slower than they may be."""

import asyncio
import hashlib

import pytest
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.serving.snapshot_broker import SnapshotBroker, Upload
from coordinator.serving.state_size import LEAST_BYTES, largest_state
from coordinator.session.refusal import RefusedError, Status


async def parts(*data: bytes, pause_s: float = 0.0):
    content = b"".join(data)
    header = pb.SnapshotHeader(size=len(content), sha256=hashlib.sha256(content).digest())
    yield pb.SnapshotChunk(header=header)
    for part in data:
        await asyncio.sleep(pause_s)
        yield pb.SnapshotChunk(data=part)


def refusal(chunks, **limits) -> RefusedError:
    settings = {"limit_bytes": 1_000, "patience_s": 5.0, "deadline_s": 10.0} | limits
    with pytest.raises(RefusedError) as raised:
        asyncio.run(Upload("a", **settings).collect(chunks))
    return raised.value


def test_a_state_that_is_too_large_too_slow_or_empty_is_refused():
    assert refusal(parts(b"x" * 1_001)).reason == "device 'a': a snapshot of 1001 bytes is over the limit of 1000"
    assert "a part without data" in refusal(parts(b"x", b"")).reason
    late = refusal(parts(b"x", pause_s=60), patience_s=0.02)
    assert (late.status, late.reason) == (
        Status.DEADLINE_EXCEEDED,
        "device 'a': no part of the snapshot came for 0.02 s",
    )
    slow = refusal(parts(*[b"x"] * 500, pause_s=0.03), patience_s=1.0, deadline_s=2.0)
    assert slow.status is Status.DEADLINE_EXCEEDED
    assert "of 500 bytes of the snapshot came in 1.0 s; all of it may take 2 s" in slow.reason


def test_a_state_is_taken_once_for_each_ask_and_the_latest_in_place_of_others():
    async def run() -> None:
        broker = SnapshotBroker()

        def upload(device: str, *data: bytes, pause_s: float = 0.0):
            return broker.take(Upload(device, 1_000, 5.0, 10.0), parts(*data, pause_s=pause_s))

        with pytest.raises(RefusedError, match="nobody asked for"):
            await upload("a", b"state")
        broker.ask("a", 0.0)
        slow = asyncio.create_task(upload("a", b"st", b"ate", pause_s=60))
        await asyncio.sleep(0.01)
        assert broker.is_waiting(1_000.0, patience_s=1.0)
        with pytest.raises(RefusedError, match="nobody asked for"):
            await upload("a", b"state")
        broker.ask("b", 0.0)
        assert (await upload("b", b"other")).data == b"other"
        with pytest.raises(RefusedError, match="device 'a': another state is taken instead") as raised:
            await slow
        assert raised.value.status is Status.ABORTED
        assert not broker.is_waiting(0.0, patience_s=1.0)
        assert broker.snapshot.data == b"other"

    asyncio.run(run())


def test_a_state_may_have_several_copies_of_the_model_and_its_curvature():
    dense = TensorSpec("fc", (10, 1_000))
    assert largest_state([dense]) == LEAST_BYTES + 8 * (16 * 10_000 + 4 * (10**2 + 1_000**2))
    assert largest_state([TensorSpec("all", (10_000,), kind="delta", parts=(dense,))]) == largest_state([dense])
    assert largest_state([TensorSpec("fc.A", (500,), kind="curvature")]) == LEAST_BYTES + 8 * 16 * 500
