"""What nobody can make the coordinator keep: long texts, states that nobody needs, calls that never go on."""

import hashlib
import queue

import grpc
import pytest
from bare_client import SPEC, join_request, wait_until_open
from edgenewton.v1 import exchange_pb2 as pb
from raw_client import Target, assert_trains_on

from coordinator.identity.limits import IdentityLimits
from coordinator.serving.state_size import LEAST_BYTES, largest_state

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LATE = grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture(scope="module")
def limited(is_secured, tmp_path_factory):
    """Return a coordinator that lets nobody hold many calls, or hold one for long."""
    limits = IdentityLimits(readers=3, streams=4, request_s=0.3)
    with Target(tmp_path_factory.mktemp("limited"), is_secured=is_secured, limits=limits) as target:
        yield target


def test_long_texts_are_cut_or_refused_and_are_kept_nowhere(target):
    session = target.session()
    a, b = (target.device(name, session) for name in "ab")
    long = join_request("m", session=session, software="s" * 60_000)
    for _ in range(3):
        token = target.stub("m").Join(long, timeout=5).token
        leave = pb.LeaveRequest(session=session, device="m", token=token, reason="r" * (7 << 20))
        code, details = target.raw("m").refusal("Leave", leave.SerializeToString())
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "device 'm': a LeaveRequest of" in details
        leave.reason = "r" * 60_000
        target.raw("m").call("Leave", leave.SerializeToString())
    code, _ = target.raw("m").refusal(
        "Join", join_request("m", session=session, software="s" * 6_000_000).SerializeToString()
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    events = target.room(session).chronicle.events.kept()
    assert [e.joined.software for e in events if e.joined.device == "m"] == ["s" * 200] * 3
    assert [e.left.reason for e in events if e.left.device == "m"] == ["r" * 500] * 3
    assert max(event.ByteSize() for event in events) < 2_000
    assert_trains_on(a, b)


def donor_of(target: Target, **settings):
    """Return a session, a device that is asked for its state, and one that needs it."""
    session = target.session(devices=2, quorum=2, **settings)
    donor = target.device("a", session, weights_digest=b"the session's")
    wait_until_open(target.coordinator, "a", session)
    other = target.device("b", session, weights_digest=b"other")
    assert next(donor.stream).HasField("snapshot_wanted")
    return session, donor, other


def header_of(size: int, data: bytes = b"") -> bytes:
    header = pb.SnapshotHeader(size=size, sha256=hashlib.sha256(data).digest())
    return pb.SnapshotChunk(header=header, data=data).SerializeToString()


def test_a_state_far_larger_than_the_model_is_refused_before_it_comes(target):
    _, donor, other = donor_of(target)
    code, details = target.raw("a").refusal("UploadSnapshot", header_of(8 << 30), token=donor.reply.token)
    assert code is EXHAUSTED
    assert details == f"device 'a': a snapshot of {8 << 30} bytes is over the limit of {largest_state([SPEC])}"
    assert LEAST_BYTES < largest_state([SPEC]) < LEAST_BYTES + 10_000
    # It was asked once, and has answered.
    code, details = target.raw("a").refusal("UploadSnapshot", header_of(4, b"good"), token=donor.reply.token)
    assert (code, details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "device 'a' hands in a state that nobody asked for",
    )
    for device in (donor, other):
        device.end()


def test_of_states_that_never_come_to_an_end_one_is_taken_and_for_a_while(target):
    session, donor, other = donor_of(target, heartbeat_s=0.2, lease_s=0.5, join_deadline_s=1.0, rejoin_deadline_s=1.0)
    for device in (donor, other):
        device.beat(every_s=0.1)
    parts = [queue.SimpleQueue() for _ in range(3)]
    for part in parts:
        part.put(header_of(1 << 20, b"x" * 1_000))
    raw, token = target.raw("a"), donor.reply.token
    uploads = [raw.stream("UploadSnapshot", iter(part.get, None), token) for part in parts]
    codes = []
    for upload in uploads:
        with pytest.raises(grpc.RpcError) as raised:
            list(upload)
        codes.append(raised.value.code())
    # Which of them is the one is the network's choice.
    assert sorted(codes, key=str) == sorted(
        [LATE, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.FAILED_PRECONDITION], key=str
    )
    assert target.room(session).healing._broker.snapshot is None
    assert next(frame for frame in donor.stream if frame.HasField("snapshot_wanted"))  # it is asked anew
    raw.call("UploadSnapshot", header_of(4, b"good"), token=token)
    (down,) = target.stub("b").DownloadSnapshot(pb.SnapshotRequest(), metadata=other.metadata, timeout=10)
    assert down.data == b"good"
    for part in parts:
        part.put(None)
    for device in (donor, other):
        device.end()


def test_one_caller_holds_only_so_many_streams_that_it_does_not_read(limited):
    session = limited.session()
    watches = [limited.stub("m").Watch(pb.WatchRequest(), timeout=20) for _ in range(3)]
    for watch in watches:
        next(watch)
    code, details = limited.raw("m").refusal("Watch", b"")
    assert code is EXHAUSTED
    assert "reads 3 streams already, which is as many as it may" in details
    watches.pop().cancel()
    for watch in watches:
        assert watch.is_active()
    assert limited.room(session).session.settings.devices == 3
    for watch in watches:
        watch.cancel()


@pytest.mark.parametrize("method", ["Join", "Leave", "Watch", "DownloadSnapshot"])
def test_a_call_whose_request_never_comes_ends(limited, method):
    nothing: queue.SimpleQueue = queue.SimpleQueue()
    with pytest.raises(grpc.RpcError) as raised:
        list(limited.raw("m").stream(method, iter(nothing.get, None)))
    assert raised.value.code() is LATE
    assert raised.value.details() == "the request did not come within 0.3 s"
    nothing.put(None)
