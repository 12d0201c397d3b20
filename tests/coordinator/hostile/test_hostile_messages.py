"""Messages that no honest device sends: each costs its sender the call, and nobody else anything."""

import contextlib
import time

import grpc
import pytest
from bare_client import SPEC, gradient_frame, join_request
from edgenewton.v1 import exchange_pb2 as pb
from raw_client import Target, assert_trains_on, field, padded

from coordinator.telemetry.record import Record

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def recorded(is_secured, tmp_path):
    """Return a coordinator that records its sessions."""
    with Target(tmp_path, is_secured=is_secured, record=Record(tmp_path / "record.sqlite")) as target:
        yield target


def test_an_evaluation_of_too_many_samples_is_refused_and_the_others_commit(recorded):
    session = recorded.session()
    m, a, b = (recorded.device(name, session) for name in "mab")
    a.send_gradient(0, 1.0)
    m.send(gradient_frame(0, 1.0, evaluation=pb.Evaluation(correct=1, samples=1 << 63, loss=0.0)))
    error = m.error()
    assert error.code() is INVALID
    assert "device 'm'" in error.details()
    assert f"evaluation.samples is {1 << 63}; it may be 0 to " in error.details()
    assert_trains_on(b)
    assert next(frame.commit for frame in a.stream if frame.HasField("commit")).devices == 2


def test_a_record_that_cannot_be_written_ends_the_session_and_blames_no_device(recorded, tmp_path):
    session = recorded.session()
    devices = [recorded.device(name, session) for name in "abc"]
    database = recorded.coordinator.directory._record._database
    database.execute("PRAGMA max_page_count = 1")  # as on a full disk; SQLite keeps the pages that there are
    step = -1
    while all(device.stream.is_active() for device in devices):
        step += 1
        for device in devices:
            device.send_gradient(step, 1.0)
        for device in devices:
            with contextlib.suppress(grpc.RpcError):
                next(device.stream)
    for device in devices:
        assert device.stream.code() is grpc.StatusCode.ABORTED
        text = device.stream.details()
        assert f"session {session!r} aborted: the coordinator failed in step {step}: " in text
        assert "the record record.sqlite cannot be written: database or disk is full" in text
    # It is not over yet: on a disk with room, the next coordinator goes on from what is recorded.
    (again,) = Record(tmp_path / "record.sqlite", read_only=True).resumable()
    assert (again.committed, set(again.devices)) == (step - 1, {"a", "b", "c"})


def test_a_frame_of_millions_of_empty_slices_is_refused_at_the_first(target):
    session = target.session()
    a, b = (target.device(name, session) for name in "ab")
    token = target.stub("m").Join(join_request("m", session=session), timeout=5).token
    began = time.process_time()
    code, details = target.raw("m").refusal("Exchange", b"\x1a\x00" * 4_000_000, token=token)
    assert time.process_time() - began < 2
    assert code is INVALID
    assert "device 'm', step 0: " in details
    assert_trains_on(a, b)


def test_a_join_with_too_many_tensors_is_refused_before_they_are_read(target):
    session = target.session(devices=2, max_devices=3)
    a, b = (target.device(name, session) for name in "ab")
    tensor = field(4, pb.TensorSpec(name="w", dtype=1, kind=1).SerializeToString())
    head = pb.JoinRequest(protocol_version=1, session=session, device="m").SerializeToString()
    began = time.process_time()
    code, details = target.raw("m").refusal("Join", head + tensor * 400_000)
    assert time.process_time() - began < 2
    assert code is INVALID
    assert "device 'm'" in details
    assert_trains_on(a, b)


def test_padded_slice_headers_are_refused_and_none_is_remembered(target):
    session = target.session()
    a, b = (target.device(name, session) for name in "ab")
    room = target.room(session)
    known = len(room.layout._known)
    frame = gradient_frame(0, 1.0)
    header = frame.slices[0].SerializeToString()
    for size in (5, 10):
        token = target.stub("m").Join(join_request("m", session=session), timeout=5).token
        # The number of the tensor, which is 0, is left out of a canonical header.
        slices = field(3, b"\x08" + padded(0, size) + header)
        code, details = target.raw("m").refusal("Exchange", slices, token=token)
        assert code is INVALID
        assert "device 'm', step 0: " in details
    for zeros in (1, 100_000):  # a field that is given again and again
        token = target.stub("m").Join(join_request("m", session=session), timeout=5).token
        code, _ = target.raw("m").refusal("Exchange", field(3, b"\x08\x00" * zeros + header), token=token)
        assert code is INVALID
    assert len(room.layout._known) == known
    assert_trains_on(a, b)
    assert room.session.fingerprint[0] == SPEC
