"""What goes to all devices: how means become frames, and which of them are kept."""

import numpy as np
import pytest
from bare_client import elements
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.fingerprint import TensorSpec
from edgenewton.v1.forms import Form
from edgenewton.v1.framing import Layout, SliceKey

from coordinator.serving.broadcast import BroadcastLog
from coordinator.serving.downlink import Broadcast
from coordinator.serving.outboxes import Outboxes
from coordinator.session.decisions import SliceReady, StepCommitted

FRAME_BYTES = 40
"""Ten elements in float32."""
SPECS = (TensorSpec("a", (4,)), TensorSpec("b", (5,)), TensorSpec("c", (10,)))


class Sent:
    """A downlink, and one device that gets everything."""

    def __init__(self, codec: str = "fp32") -> None:
        self.outboxes = Outboxes(BroadcastLog(1 << 20, 0))
        self.outbox = self.outboxes.open("a", None)
        self.outboxes.place("a", 0)
        self.layout = Layout(SPECS, CodecChoice(codec).policy(), FRAME_BYTES)
        self.downlink = Broadcast(self.outboxes)
        self.downlink.begin(self.layout)

    def add(self, step: int, tensor: int, value: float) -> None:
        (piece,) = self.layout.slices(tensor)
        values = np.full(piece.length, value, np.float32)
        self.downlink.add(SliceReady(step, SliceKey(tensor, 0), values, Form.INT4))

    def commit(self, step: int) -> None:
        self.downlink.commit(
            StepCommitted(step, samples=3, devices=2, left_out=("z",), loss=0.5, evaluation=None, seconds=1.0)
        )

    def frames(self) -> list[pb.Frame]:
        return [pb.Frame.FromString(frame) for frame in self.outboxes.waiting(self.outbox)]


def test_slices_that_are_ready_together_share_frames_up_to_their_size():
    sent = Sent()
    for tensor in range(3):
        sent.add(0, tensor, float(tensor))
    first, second = sent.frames()  # the third fills a frame of its own
    assert [piece.tensor for piece in first.slices] == [0, 1]
    assert [piece.tensor for piece in second.slices] == [2]
    assert np.allclose(elements(second), 2.0)
    assert {frame.step for frame in (first, second)} == {0}
    sent.downlink.flush()
    assert sent.frames() == []


def test_slices_wait_for_no_others_once_nothing_more_is_ready():
    sent = Sent()
    sent.add(0, 0, 1.0)
    assert sent.frames() == []
    sent.downlink.flush()
    (frame,) = sent.frames()
    assert [piece.tensor for piece in frame.slices] == [0]
    assert not frame.HasField("commit")


def test_a_commit_goes_with_the_slices_that_wait_and_begins_the_next_step():
    sent = Sent()
    sent.add(0, 1, 1.0)
    sent.commit(0)
    (frame,) = sent.frames()
    assert len(frame.slices) == 1
    assert frame.commit == pb.Commit(samples=3, devices=2, left_out=["z"], loss=0.5, batches=1)
    sent.add(1, 0, 2.0)
    sent.downlink.flush()
    assert [frame.step for frame in sent.frames()] == [1]
    sent.outboxes.place("a", 1)
    assert [frame.step for frame in sent.frames()] == [1]
    sent.outboxes.place("a", 0)
    assert [frame.step for frame in sent.frames()] == [0, 1]


def test_a_step_that_is_given_up_leaves_nothing_behind():
    sent = Sent()
    sent.add(7, 0, 1.0)
    sent.downlink.restart(3)
    sent.downlink.flush()
    assert sent.outboxes.log.position_of(0) is None
    sent.outboxes.place("a", 3)
    sent.add(3, 1, 2.0)
    sent.downlink.flush()
    (frame,) = sent.frames()
    assert (frame.step, [piece.tensor for piece in frame.slices]) == (3, [1])


def test_what_the_codec_saved_is_counted_to_whoever_is_sent_the_frame():
    sent = Sent("bf16")
    sent.add(0, 2, 1.0)
    sent.downlink.flush()
    assert len(sent.frames()) == 1
    assert sent.outbox.use.saved == 10 * 2
    assert sent.outbox.use.sent == sent.outboxes.log.size


def test_a_mean_that_is_no_number_is_never_sent():
    sent = Sent()
    with pytest.raises(ValueError, match="the gradient of 'a', 4 float32 has a value that is not finite"):
        sent.add(0, 0, float("nan"))
    sent.downlink.flush()
    assert sent.frames() == []
