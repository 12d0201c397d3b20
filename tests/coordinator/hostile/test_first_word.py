"""Who completes every step first with other hyperparameters, batches or slices makes nobody else be refused."""

import time

import grpc
import pytest
from bare_client import gradient_frame
from edgenewton.v1 import exchange_pb2 as pb
from raw_client import assert_trains_on

RATE = {"lr": 0.1}


def end_only(step: int) -> pb.Frame:
    """Return the end of a contribution of which no slice was sent."""
    frame = gradient_frame(step, 1.0, hyperparameters=RATE)
    frame.ClearField("slices")
    return frame


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (gradient_frame(0, 1.0, hyperparameters={"lr": 0.5}), "its option 'lr' is 0.5 where it is 0.1 on device 'a'"),
        (gradient_frame(0, 1.0, hyperparameters=RATE, batches=7), "it trained 7 batches since the last step, and "),
        (end_only(0), "it and device 'a' and 2 others differ in whether they sent the gradient of 'fc.weight'"),
    ],
    ids=["hyperparameters", "batches", "slices"],
)
def test_who_is_first_decides_nothing(target, first, message):
    session = target.session(devices=4, quorum=3)
    hostile, *honest = (target.device(name, session) for name in ("hostile", "a", "b", "c"))
    room = target.room(session)
    hostile.send(first)
    deadline = time.monotonic() + 10
    while "hostile" not in room.session.step.contributions:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for device in honest:
        device.send(gradient_frame(0, 2.0, hyperparameters=RATE))
    for device in honest:
        commit = next(frame.commit for frame in device.stream if frame.HasField("commit"))
        assert (commit.devices, list(commit.left_out)) == (3, ["hostile"])
    error = hostile.error()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"device 'hostile', step 0: {message}")
    assert room.chronicle.statistics.refusals == {"INVALID_ARGUMENT": 1}
    assert_trains_on(*honest, step=1)
