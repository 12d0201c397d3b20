"""What a device keeps of the frames that come."""

import numpy as np
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.framing import FramePacker, Layout, SliceWriter
from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.exchange.remote.assembly import Assembly

SPECS = (TensorSpec("w", (3, 2)), TensorSpec("b", (2,)))
LAYOUT = Layout(SPECS, CodecChoice().policy(), 1 << 20)


def frames(step: int) -> list[bytes]:
    """Return a frame for each tensor, the last one with the commit."""
    sent = []
    for index, spec in enumerate(SPECS):
        packer = FramePacker(step, 1, LAYOUT.frame_bytes)
        for piece in LAYOUT.slices(index):
            values = np.full(spec.size, step, np.float32)
            list(packer.add(piece, SliceWriter(LAYOUT).encode(piece, values, step)))
        sent.append(packer.take(pb.Frame(commit=pb.Commit(samples=1)) if spec is SPECS[-1] else None))
    return sent


def test_steps_after_a_snapshot_that_arrive_before_it_are_whole():
    # A device that joins without the state is told the step that is on, which may be later than the snapshot's.
    assembly = Assembly(LAYOUT, next_step=9)
    assembly.begin_healing()
    first, second = frames(8)
    assembly.take_frame(first)
    assembly.rebase(8)
    assembly.take_frame(second)
    step = assembly.take_step(8)
    assert step.tensors.keys() == {0, 1}
    assert assembly.received_until == 9


def test_steps_that_were_committed_before_a_snapshot_came_count():
    assembly = Assembly(LAYOUT, next_step=12)
    assembly.begin_healing()
    for step in (7, 8, 9):
        for frame in frames(step):
            assembly.take_frame(frame)
    assembly.rebase(8)
    assert assembly.received_until == 10
    assert assembly.take_step(7) is None
    assert [assembly.take_step(step).step for step in (8, 9)] == [8, 9]


def test_what_is_not_committed_is_forgotten_with_the_connection():
    assembly = Assembly(LAYOUT, next_step=3)
    for frame in [*frames(3), frames(4)[0]]:
        assembly.take_frame(frame)
    assembly.forget_uncommitted()
    assembly.take_frame(frames(4)[1])
    assert assembly.take_step(3).tensors.keys() == {0, 1}
    assert assembly.take_step(4).tensors.keys() == {1}
