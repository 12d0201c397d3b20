"""The gRPC service on a real port, with the protocol's own stubs: what any client may send."""

import hashlib
import threading

import grpc
import numpy as np
import pytest
from bare_client import Device, elements, gradient_frame, join_request, refused, wait_until_open
from edgenewton.v1 import MAX_MESSAGE_BYTES, TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.tensor_spec import TensorSpec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator.serving.server import SERVICE_NAME, embedded_coordinator
from coordinator.session.settings import SessionSettings

IMPATIENT = {"heartbeat_s": 0.1, "lease_s": 0.4, "rejoin_deadline_s": 0}


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


@pytest.fixture
def stub(coordinator):
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(coordinator.address, options) as channel:
        yield exchange_pb2_grpc.GradientExchangeStub(channel)


def test_a_step_gives_every_device_the_weighted_mean(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2))
    a, b = Device(stub, "a"), Device(stub, "b")
    for step in range(3):
        a.send_gradient(step, 1.0, samples=1)
        b.send_gradient(step, 4.0, samples=2)
        for device in (a, b):
            frame = next(device.stream)
            assert frame.commit.samples == 3
            assert frame.commit.devices == 2
            assert np.allclose(elements(frame), 3.0)


def test_a_skipped_batch_has_no_part_in_the_mean(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2))
    a, b = Device(stub, "a"), Device(stub, "b")
    a.send(gradient_frame(0, 0.0, samples=0, skipped=True))
    b.send_gradient(0, 4.0, samples=2)
    for device in (a, b):
        frame = next(device.stream)
        assert (frame.commit.samples, frame.commit.devices, frame.commit.loss) == (2, 1, 4.0)
        assert (elements(frame) == 4.0).all()
    for device in (a, b):
        device.send(gradient_frame(1, 0.0, samples=0, skipped=True))
    for device in (a, b):
        frame = next(device.stream)
        assert (frame.commit.samples, frame.commit.devices) == (0, 0)
        assert np.isnan(frame.commit.loss)
        assert not elements(frame).any()


def test_unknown_session_is_named_beside_those_there_are(coordinator, stub):
    coordinator.create_session("leaves", SessionSettings(devices=1))
    code, details = refused(lambda: stub.Join(join_request("a", session="trees"), timeout=5))
    assert code is grpc.StatusCode.NOT_FOUND
    assert details == "session 'trees' does not exist; sessions on this coordinator: 'leaves'"
    code, _ = refused(lambda: list(stub.Watch(pb.WatchRequest(session="trees"), timeout=5)))
    assert code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (join_request("a"), grpc.StatusCode.ALREADY_EXISTS, "'a' cannot join session 's': a live device with this id"),
        (join_request("b", version=9), grpc.StatusCode.FAILED_PRECONDITION, "protocol version 9"),
        (
            join_request("b", TensorSpec("w", (1 << 40, 1 << 40)), version=9),
            grpc.StatusCode.FAILED_PRECONDITION,
            "version 9",
        ),
        (join_request(""), grpc.StatusCode.INVALID_ARGUMENT, "needs an id"),
        (join_request("b" * 129), grpc.StatusCode.INVALID_ARGUMENT, "up to 128 printable characters"),
        (join_request("b\x1b[31m"), grpc.StatusCode.INVALID_ARGUMENT, "this one begins 'b\\x1b[31m'"),
        (
            join_request("b", TensorSpec("fc.weight", (2, 4))),
            grpc.StatusCode.FAILED_PRECONDITION,
            "'fc.weight', 2 x 3 float32 where this device has the gradient of 'fc.weight', 2 x 4 float32",
        ),
    ],
)
def test_refused_joins(coordinator, stub, request_, code, message):
    coordinator.create_session("s", SessionSettings(devices=2, max_devices=3))
    a = Device(stub, "a")
    wait_until_open(coordinator, "a")
    actual, details = refused(lambda: stub.Join(request_, timeout=5))
    assert actual is code
    assert message in details
    assert a.stream.is_active()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (gradient_frame(0, np.nan), "device 'a', step 0: the gradient of 'fc.weight', 2 x 3 float32 has a value"),
        (gradient_frame(0, np.inf), "not finite"),
        (gradient_frame(0, 1e26), "beyond ±1e+25"),
        (gradient_frame(5, 1.0), "device 'a' sent a frame of step 5; the session is at step 0"),
        (pb.Frame(step=0, samples=1, slices=[pb.TensorSlice(tensor=3)]), "tensor 3 is unknown"),
        (pb.Frame(step=0, contribution=pb.Contribution()), "batch of 0 samples"),
        (gradient_frame(0, 0.0, samples=3, skipped=True), "step 0: claims 3 samples of a batch that it skips"),
    ],
)
def test_a_bad_frame_costs_only_its_sender_the_session(coordinator, stub, frame, message):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2))
    a, b, c = (Device(stub, name) for name in "abc")
    a.send(frame)
    error = a.error()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in error.details()
    for device in (b, c):
        device.send_gradient(0, 2.0)
    for device in (b, c):
        frames = []
        while not frames or not frames[-1].HasField("commit"):
            frames.append(next(device.stream))
        assert list(frames[-1].commit.left_out) == ["a"]


def test_a_message_over_the_limit_is_refused_and_the_others_go_on(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2, quorum=1, **IMPATIENT | {"lease_s": 2.0}))
    a, b = Device(stub, "a"), Device(stub, "b")
    b.beat(every_s=0.1)
    a.send(pb.Frame(step=0, samples=1, slices=[pb.TensorSlice(data=bytes(MAX_MESSAGE_BYTES + 1))]))
    assert a.error().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    b.send_gradient(0, 2.0)
    assert next(frame for frame in b.stream if frame.slices)


def test_streams_need_the_token_of_a_live_membership(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2))
    for metadata in ((), ((TOKEN_METADATA_KEY, "guess"),)):
        code, _ = refused(lambda metadata=metadata: list(stub.Exchange(iter(()), metadata=metadata, timeout=5)))
        assert code is grpc.StatusCode.PERMISSION_DENIED
    a = Device(stub, "a")
    wait_until_open(coordinator, "a")
    code, details = refused(lambda: list(stub.Exchange(iter(()), metadata=a.metadata, timeout=5)))
    assert (code, details) == (grpc.StatusCode.ALREADY_EXISTS, "device 'a' has a stream already")
    code, _ = refused(lambda: stub.Leave(pb.LeaveRequest(session="s", device="a", token="guess"), timeout=5))
    assert code is grpc.StatusCode.PERMISSION_DENIED


def test_a_device_that_joins_and_opens_no_stream_is_not_waited_for(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2, heartbeat_s=0.4, lease_s=1.0, rejoin_deadline_s=0))
    a = Device(stub, "a")
    a.send_gradient(0, 1.0)
    stub.Join(join_request("b"), timeout=5)
    a.beat(every_s=0.2)
    error = a.error()
    assert error.code() is grpc.StatusCode.ABORTED
    assert "device 'b' left in step 0: device 'b': nothing was heard from it for 1 s" in error.details()


def test_a_stream_that_never_sends_loses_its_place_and_the_others_go_on(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2, quorum=1, **IMPATIENT | {"lease_s": 0.6}))
    a, b = Device(stub, "a"), Device(stub, "b")
    a.send_gradient(0, 1.0)
    b_error = b.error()
    assert b_error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert b_error.details() == "device 'b': nothing was heard from it for 0.6 s"


def test_heartbeats_are_answered(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2))
    a = Device(stub, "a")
    a.send(pb.Frame(heartbeat=pb.Heartbeat()))
    assert next(a.stream).HasField("heartbeat")


def test_abort_releases_the_waiting_devices_with_status_and_reason(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2))
    a, _ = Device(stub, "a"), Device(stub, "b")
    a.send_gradient(0, 1.0)
    threading.Timer(0.2, coordinator.abort, ("s", "the run was stopped")).start()
    error = a.error()
    assert error.code() is grpc.StatusCode.ABORTED
    assert error.details() == "session 's' aborted: the run was stopped"
    code, details = refused(lambda: list(stub.Exchange(iter(()), metadata=a.metadata, timeout=5)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "the run was stopped" in details


def test_a_device_that_goes_away_releases_the_others(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2, **IMPATIENT))
    a, b = Device(stub, "a"), Device(stub, "b")
    a.beat(every_s=0.1)
    a.send_gradient(0, 1.0)
    b.end()
    error = a.error()
    assert error.code() is grpc.StatusCode.ABORTED
    assert "device 'b' left in step 0" in error.details()


def test_stopping_the_coordinator_releases_the_devices(stub, coordinator):
    coordinator.create_session("s", SessionSettings(devices=2))
    a = Device(stub, "a")
    threading.Timer(0.2, coordinator.abort, ("s", "the coordinator stops")).start()
    assert a.error().code() is grpc.StatusCode.ABORTED


def snapshot_chunks(data: bytes, size: int | None = None, digest: bytes | None = None):
    header = pb.SnapshotHeader(size=len(data) if size is None else size, sha256=digest or hashlib.sha256(data).digest())
    yield pb.SnapshotChunk(header=header)
    for begin in range(0, len(data), 1 << 20):
        yield pb.SnapshotChunk(data=data[begin : begin + (1 << 20)])


def healing_pair(coordinator, stub, **settings) -> tuple[Device, Device]:
    """Return a device that is asked for its state, and one that needs it."""
    coordinator.create_session("s", SessionSettings(devices=2, **settings))
    donor = Device(stub, "a", weights_digest=b"the session's")
    wait_until_open(coordinator, "a")
    other = Device(stub, "b", weights_digest=b"other")
    assert other.reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD
    assert next(donor.stream).HasField("snapshot_wanted")
    return donor, other


def test_a_snapshot_goes_up_in_chunks_and_down_to_those_who_need_it(coordinator, stub):
    donor, other = healing_pair(coordinator, stub)
    data = np.random.default_rng(0).bytes(3_000_000)
    stub.UploadSnapshot(snapshot_chunks(data), metadata=donor.metadata, timeout=10)
    down = list(stub.DownloadSnapshot(pb.SnapshotRequest(), metadata=other.metadata, timeout=10))
    assert len(down) == 3
    assert b"".join(chunk.data for chunk in down) == data
    assert down[0].header.sha256 == hashlib.sha256(data).digest()
    for device in (donor, other):  # both take part
        device.send_gradient(0, 1.0)
    assert next(other.stream).commit.devices == 2


@pytest.mark.parametrize("lie", [{"size": 5}, {"digest": b"x" * 32}])
def test_a_snapshot_that_is_not_what_its_header_says_is_refused(coordinator, stub, lie):
    donor, _ = healing_pair(coordinator, stub)
    code, details = refused(
        lambda: stub.UploadSnapshot(snapshot_chunks(b"weights", **lie), metadata=donor.metadata, timeout=5)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "not what its header says" in details


def test_a_snapshot_that_is_too_large_or_that_nobody_asked_for_is_refused(coordinator, stub):
    donor, other = healing_pair(coordinator, stub, max_snapshot_bytes=100)
    code, details = refused(
        lambda: stub.UploadSnapshot(snapshot_chunks(bytes(101)), metadata=donor.metadata, timeout=5)
    )
    assert (code, details) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "device 'a': a snapshot of 101 bytes is over the limit of 100",
    )
    code, details = refused(lambda: stub.UploadSnapshot(snapshot_chunks(b"state"), metadata=other.metadata, timeout=5))
    assert (code, details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "device 'b' hands in a state that nobody asked for",
    )


def test_waiting_for_a_snapshot_ends_at_the_deadline(coordinator, stub):
    _, other = healing_pair(coordinator, stub, join_deadline_s=0.5, rejoin_deadline_s=0)
    code, _ = refused(lambda: list(stub.DownloadSnapshot(pb.SnapshotRequest(), metadata=other.metadata, timeout=5)))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_watch_tells_the_whole_story_from_the_beginning(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=1))
    a = Device(stub, "a")
    frame = gradient_frame(0, 2.0, samples=4)
    frame.contribution.evaluation.CopyFrom(pb.Evaluation(correct=3, samples=4, loss=0.5))
    a.send(frame)
    next(a.stream)
    stub.Leave(pb.LeaveRequest(session="s", device="a", token=a.reply.token, finished=True), timeout=5)
    events = list(stub.Watch(pb.WatchRequest(session="s"), timeout=5))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["phase", "joined", "phase", "report", "step", "left", "phase"]
    assert events[3].report.bytes_received == frame.ByteSize()
    assert events[4].step.evaluation.correct == 3
    assert events[-1].phase.phase == pb.PHASE_ENDED
    later = stub.Watch(pb.WatchRequest(), timeout=5)
    assert [next(later).WhichOneof("event") for _ in kinds] == kinds


def test_several_sessions_do_not_meet(coordinator, stub):
    for name in ("s", "t"):
        coordinator.create_session(name, SessionSettings(devices=1))
    one, other = Device(stub, "a", session="s"), Device(stub, "a", session="t")
    one.send_gradient(0, 1.0)
    other.send_gradient(0, 2.0)
    assert np.allclose(elements(next(one.stream)), 1.0)
    assert np.allclose(elements(next(other.stream)), 2.0)


def test_generic_clients_find_health_and_reflection(coordinator):
    with grpc.insecure_channel(coordinator.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE_NAME):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = reflection.ServerReflectionInfo(iter([request]), timeout=5)
        names = [service.name for service in reply.list_services_response.service]
        assert {"edgenewton.v1.GradientExchange", "grpc.health.v1.Health"} <= set(names)


def group_sketch(**changes) -> pb.GroupSketch:
    values = {"name": "fc", "projections": [1.0, -1.0, 1.0, 1.0], "scale": 2.0, "roundoff": 2.0**-24}
    return pb.GroupSketch(**(values | changes))


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([group_sketch()] * 33, "sketch.groups comes more than 32 times"),
        ([group_sketch(name="x" * 97)], "1 to 96 printable characters"),
        ([group_sketch(name="")], "1 to 96 printable characters"),
        ([group_sketch(name="\x1b[31m")], "1 to 96 printable characters"),
        ([group_sketch(projections=[1.0] * 5_000)], "projections has more than 4 numbers"),
        ([group_sketch(scale=-1.0)], "sketch of 'fc' has an impossible scale or roundoff"),
        ([group_sketch(roundoff=float("nan"))], "sketch.groups.roundoff is nan; it may be 0 to 1"),
    ],
)
def test_what_is_no_sketch_is_refused(coordinator, stub, groups, text):
    coordinator.create_session("s", SessionSettings(devices=1))
    sketch = pb.Sketch(groups=groups)
    code, reason = refused(lambda: stub.Join(join_request("b", sketch=sketch), timeout=5))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text in reason
    device = Device(stub, "a")
    device.send(gradient_frame(0, 1.0, sketch=sketch))
    error = device.error()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "device 'a', step 0: " in error.details()
    assert text in error.details()


def test_a_device_whose_sketch_is_not_finite_is_named_and_heals(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=3))
    devices = [Device(stub, name) for name in "abc"]
    for device in devices:
        projections = [float("nan")] * 4 if device.name == "b" else [1.0, 1.0, 1.0, 1.0]
        sketch = pb.Sketch(groups=[group_sketch(projections=projections)])
        device.send(gradient_frame(0, 1.0, sketch=sketch))
    assert next(devices[1].stream).heal.reason == "device 'b' diverged: before step 0 its 'fc' was not finite"
    assert next(devices[0].stream).HasField("commit")
