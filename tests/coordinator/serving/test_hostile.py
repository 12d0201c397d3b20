"""Hostile and broken input: each gets its status and reason, the others train on, and memory stays bounded."""

import time

import grpc
import numpy as np
import pytest
from bare_client import SPEC, Device, gradient_frame, join_request, refused, wait_until_open
from edgenewton.v1 import TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings

QUICK = {"heartbeat_s": 0.1, "lease_s": 0.5}


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


@pytest.fixture
def channel(coordinator):
    with grpc.insecure_channel(coordinator.address, [("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return exchange_pb2_grpc.GradientExchangeStub(channel)


def sliced(**changes) -> pb.Frame:
    """Return a whole contribution whose slice was changed."""
    frame = gradient_frame(0, 1.0)
    for name, value in changes.items():
        if name == "shape":
            frame.slices[0].ClearField("shape")
            frame.slices[0].shape.extend(value)
        else:
            setattr(frame.slices[0], name, value)
    return frame


def raw_stream(channel, token: str, messages: list[bytes], compression=None):
    """Send bytes that need not be frames."""
    call = channel.stream_stream("/edgenewton.v1.GradientExchange/Exchange")
    return call(iter(messages), metadata=((TOKEN_METADATA_KEY, token),), timeout=10, compression=compression)


def assert_trains_on(*devices: Device, step: int = 0) -> None:
    """Check that these devices can still commit a step."""
    for device in devices:
        device.send_gradient(step, 2.0)
    for device in devices:
        commit = next(frame.commit for frame in device.stream if frame.HasField("commit"))
        assert commit.devices >= len(devices)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (sliced(shape=[3, 2]), "device 'm', step 0: the gradient of 'fc.weight', 2 x 3 float32 came with shape [3, 2]"),
        (sliced(data=b"123"), "6 elements take 24 bytes as fp32, but 3 bytes came"),
        (sliced(data=bytes(28)), "6 elements take 24 bytes as fp32, but 28 bytes came"),
        (sliced(length=7), "came with a slice of 7 elements at 0"),
        (sliced(offset=1 << 63), f"elements at {1 << 63}"),
        (sliced(offset=6), "at 6"),
        (sliced(tensor=77), "device 'm', step 0: tensor 77 is unknown; the model has 1 tensors"),
        (sliced(codec=99), "came in codec 99; in this session it takes fp32"),
        (sliced(codec=pb.CODEC_TOPK), "came in codec 6; in this session it takes fp32"),
        (
            gradient_frame(0, np.nan),
            "device 'm', step 0: the gradient of 'fc.weight', 2 x 3 float32 has a value that is",
        ),
        (gradient_frame(0, -np.inf), "not finite"),
        (gradient_frame(0, 3e38), "beyond"),
        (gradient_frame(1, 1.0), "device 'm' sent a frame of step 1; the session is at step 0"),
        (gradient_frame((1 << 64) - 1, 1.0), f"step is {(1 << 64) - 1}; it may be 0 to 1000000000000"),
        (
            gradient_frame(0, 1.0, samples=(1 << 32) - 1),
            "device 'm', step 0: samples is 4294967295; it may be 0 to 1048576",
        ),
    ],
)
def test_a_frame_that_lies_is_refused_by_name_and_the_others_train_on(coordinator, stub, frame, reason):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2))
    m, a, b = (Device(stub, name) for name in "mab")
    m.send(frame)
    error = m.error()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in error.details()
    assert_trains_on(a, b)


def test_duplicates_and_stale_steps_are_refused(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2))
    m, a, b = (Device(stub, name) for name in "mab")
    twice = gradient_frame(0, 1.0)
    twice.ClearField("contribution")
    m.send(twice)
    m.send(twice)
    error = m.error()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        "device 'm', step 0: the gradient of 'fc.weight', 2 x 3 float32: sent the slice at 0 twice" in error.details()
    )
    assert_trains_on(a, b)
    a.send_gradient(0, 1.0)
    error = a.error()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "device 'a' sent a frame of step 0; the session is at step 1" in error.details()


@pytest.mark.parametrize(
    "data", [b"\xff" * 40, gradient_frame(0, 1.0).SerializeToString()[:-7], b"\x1a\xff\xff\xff\xff\x0f", b"\x0b\x0c"]
)
def test_bytes_that_are_no_frame_are_refused(coordinator, stub, channel, data):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2))
    a, b = Device(stub, "a"), Device(stub, "b")
    token = stub.Join(join_request("m"), timeout=5).token
    code, details = refused(lambda: list(raw_stream(channel, token, [data])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "device 'm', step 0: a frame is no valid protobuf message" in details
    assert_trains_on(a, b)


def test_a_decompression_bomb_is_stopped_at_the_message_limit(coordinator, stub, channel):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2, **QUICK))
    a, b = Device(stub, "a"), Device(stub, "b")
    for device in (a, b):
        device.beat(every_s=0.1)
    token = stub.Join(join_request("m"), timeout=5).token
    bomb = bytes(12 << 20)  # of zeros: some 12 kB on the wire, over the limit once it is unpacked
    code, _ = refused(lambda: list(raw_stream(channel, token, [bomb], compression=grpc.Compression.Gzip)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_trains_on(a, b)


def test_a_small_payload_cannot_claim_a_large_tensor(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2, codec="powersgd", max_model_bytes=1 << 20))
    huge = TensorSpec("w", (1 << 16, 1 << 16))
    code, details = refused(lambda: stub.Join(join_request("m", huge, codecs=[5]), timeout=5))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "its tensors take 17179869184 bytes in all; at most 1048576" in details


def test_a_thousand_joins_leave_the_places_and_the_memory_as_they_were(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2, step_deadline_s=1))
    a, b = Device(stub, "a"), Device(stub, "b")
    joins = [stub.Join.future(join_request(f"m{i}"), timeout=20) for i in range(1_000)]
    codes = [join.code() for join in joins]
    assert codes.count(grpc.StatusCode.OK) == 1
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 999
    room = coordinator.directory.find("s")
    assert len(room.session.members) == len(room.devices_by_token) == 3
    # The one that got in never opens a stream; the step's deadline leaves it out, and the others train on.
    assert_trains_on(a, b)


def test_another_sessions_token_and_id_open_nothing(coordinator, stub):
    for name in ("s", "t"):
        coordinator.create_session(name, SessionSettings(devices=2))
    a, b = Device(stub, "a"), Device(stub, "b")
    other = stub.Join(join_request("a", session="t"), timeout=5)
    assert other.token != a.reply.token
    request = pb.LeaveRequest(session="s", device="a", token=other.token, finished=True)
    code, details = refused(lambda: stub.Leave(request, timeout=5))
    assert (code, details) == (grpc.StatusCode.PERMISSION_DENIED, "the token sent for device 'a' is not its own")
    wait_until_open(coordinator, "a")
    code, _ = refused(lambda: stub.Join(join_request("a", token=other.token), timeout=5))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert_trains_on(a, b)


def test_a_receiver_that_never_reads_costs_bounded_memory_and_has_to_heal(coordinator, stub):
    spec = TensorSpec("w", (1 << 18,))
    # Small budget: the log keeps the last step and no more.
    coordinator.create_session("s", SessionSettings(devices=2, quorum=1, replay_bytes=0, step_deadline_s=0.2, **QUICK))
    room = coordinator.directory.find("s")
    values = np.ones(1 << 18, "<f4")
    a, lazy = Device(stub, "a", spec), Device(stub, "b", spec)
    a.beat(every_s=0.1)
    lazy.beat(every_s=0.1)
    seen = iter(a.stream)
    for step in range(20):
        frame = pb.Frame(step=step, samples=1, contribution=pb.Contribution(loss=0.0))
        frame.slices.add(
            dtype=pb.DTYPE_FLOAT32, codec=pb.CODEC_FP32, shape=[1 << 18], length=1 << 18, data=values.tobytes()
        )
        a.send(frame)
        while not next(seen).HasField("commit"):
            pass
        assert room.kept_bytes <= 3 << 20
    error = lazy.error()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the device reads too slowly" in error.details()


def test_an_id_or_name_that_is_no_text_of_ours_is_quoted_and_harmless(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2))
    name = "a'; DROP TABLE devices; --"
    reply = stub.Join(join_request(name, SPEC), timeout=5)
    assert reply.token
    unprintable = name + "\n\x07"
    code, details = refused(lambda: stub.Join(join_request("b", session=unprintable), timeout=5))
    assert code is grpc.StatusCode.NOT_FOUND
    assert repr(unprintable) in details
    deadline = time.monotonic() + 5
    while name not in coordinator.directory.find("s").session.members:
        assert time.monotonic() < deadline
