"""Messages that no honest device sends: each costs its sender the call, and nobody else anything."""

import time

import grpc
import pytest
from bare_client import SPEC, gradient_frame, join_request, refused
from edgenewton.v1 import exchange_pb2 as pb
from raw_client import Target, assert_trains_on, field, padded

from coordinator.session.decisions import Phase
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


def test_a_step_that_cannot_be_recorded_ends_the_session_and_blames_no_device(recorded):
    session = recorded.session()
    devices = [recorded.device(name, session) for name in "abc"]
    for device in devices:
        device.send_gradient(0, 1.0)
    for device in devices:
        assert next(device.stream).commit.devices == 3
    # A full disk stops no session; this is an error that trying again does not mend.
    recorded.coordinator.directory._record._database.execute("DROP TABLE steps")
    for device in devices:
        device.send_gradient(1, 1.0)
    text = f"session {session!r} aborted: the coordinator failed in step 1: no such table: "
    for device in devices:
        error = device.error()
        assert error.code() is grpc.StatusCode.ABORTED
        assert text in error.details()
    assert recorded.room(session).session.phase is Phase.ABORTED


def test_nothing_that_a_device_says_is_a_command_to_a_terminal_or_a_line_of_its_own_in_the_log(target, caplog):
    caplog.set_level("INFO")
    escape = "\x1b[2J\x1b]0;title\x07\r\n2026 ERROR all is lost"
    session = target.session()
    a, b = (target.device(name, session) for name in "ab")
    target.stub("a").Leave(pb.LeaveRequest(session=session, device="a", token=a.reply.token, reason=escape), timeout=5)
    for option in ({"lr": escape}, {escape: "1"}):
        code, text = refused(
            lambda option=option: target.stub("m").Join(join_request("m", session=session, options=option), timeout=5)
        )
        assert (code, "characters that cannot be printed" in text) == (INVALID, True)
    (left,) = [e.left for e in target.room(session).chronicle.events.kept() if e.HasField("left")]
    assert "2026 ERROR all is lost" in left.reason
    for text in (left.reason, *caplog.messages):
        assert text.isprintable()
    assert b.stream.is_active()


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
