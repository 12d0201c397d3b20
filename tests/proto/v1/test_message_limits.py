"""The limits beside the messages' fields: every field has some, and what is over them is named."""

import math
import struct

import pytest
from edgenewton.v1 import control_pb2
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.framing import SENT_FRAME
from edgenewton.v1.limits import LimitError, Limits
from edgenewton.v1.sketch import MAX_GROUPS, MAX_NAME_LENGTH, PROJECTIONS
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from raw_client import field, number_field, padded

SERVICES = (pb.DESCRIPTOR.services_by_name["GradientExchange"], control_pb2.DESCRIPTOR.services_by_name["Control"])
REQUESTS = sorted({method.input_type._concrete_class for s in SERVICES for method in s.methods}, key=str)


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: message.DESCRIPTOR.name)
def test_every_field_of_every_request_has_a_limit(message):
    limits = Limits(message)  # raises for a field without
    assert 0 < limits.bytes <= 8 << 20
    limits.check(b"")
    assert limits.parse(b"") == message()


def test_a_field_without_a_limit_is_named():
    with pytest.raises(TypeError, match="edgenewton.v1.JoinReply.protocol_version has no limit"):
        Limits(pb.JoinReply)


def evaluation(**values) -> pb.Frame:
    return pb.Frame(contribution=pb.Contribution(evaluation=pb.Evaluation(**values)))


def contribution(**values) -> pb.Frame:
    return pb.Frame(contribution=pb.Contribution(**values))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (evaluation(samples=1 << 63), f"contribution.evaluation.samples is {1 << 63}; it may be 0 to 1000000000000"),
        (evaluation(correct=10**12 + 1), "contribution.evaluation.correct is 1000000000001; it may be"),
        (pb.Frame(step=(1 << 64) - 1), f"step is {(1 << 64) - 1}; it may be 0 to 1000000000000"),
        (pb.Frame(samples=(1 << 20) + 1), "samples is 1048577; it may be 0 to 1048576"),
        (contribution(batches=1_000_001), "contribution.batches is 1000001; it may be 0 to 1000000"),
        (contribution(pace=pb.Pace(batch_s=-1.0)), "contribution.pace.batch_s is -1.0; it may be 0 to 1000000"),
        (contribution(pace=pb.Pace(round_trip_s=math.nan)), "contribution.pace.round_trip_s is nan; it may be 0 to"),
        (
            contribution(sketch=pb.Sketch(groups=[pb.GroupSketch(name="w", roundoff=2.0)])),
            "contribution.sketch.groups.roundoff is 2.0; it may be 0 to 1",
        ),
        (
            contribution(sketch=pb.Sketch(groups=[pb.GroupSketch()] * 33)),
            "contribution.sketch.groups comes more than 32 times",
        ),
        (
            contribution(sketch=pb.Sketch(groups=[pb.GroupSketch(projections=[1.0] * 5)])),
            "contribution.sketch.groups.projections has more than 4 numbers",
        ),
        (
            contribution(hyperparameters={str(number): 0.0 for number in range(257)}),
            "contribution.hyperparameters comes more than 256 times",
        ),
        (
            contribution(hyperparameters={"l" * 257: 0.0}),
            "contribution.hyperparameters.key has 257 bytes; at most 256 are accepted",
        ),
        (pb.Frame(commit=pb.Commit()), "commit is not for devices to send"),
        (pb.Frame(heal=pb.Heal(reason="no")), "heal is not for devices to send"),
        (pb.JoinRequest(session="ä" * 257), "session has 514 bytes; at most 512 are accepted"),
        (pb.JoinRequest(training_samples=1 << 62), f"training_samples is {1 << 62}; it may be 0 to 1000000000000"),
        (pb.JoinRequest(options={"a": "b" * 20_000}), "options.value has 20000 bytes; at most 16384 are accepted"),
        (pb.JoinRequest(tensors=[pb.TensorSpec()] * 8_193), "tensors comes more than 8192 times"),
        (
            pb.JoinRequest(tensors=[pb.TensorSpec(shape=[1] * 33)]),
            "tensors.shape has more than 32 numbers",
        ),
        (pb.JoinRequest(tensors=[pb.TensorSpec(shape=[1 << 40])]), f"tensors.shape is {1 << 40}; it may be 0 to"),
        (pb.SnapshotChunk(header=pb.SnapshotHeader(size=1 << 63)), f"header.size is {1 << 63}; it may be 0 to"),
        (pb.LeaveRequest(reason="x" * 70_000), "reason has 70000 bytes; at most 65536 are accepted"),
        (pb.WatchRequest(session="x" * 2_000), "a WatchRequest of 2003 bytes came; at most 1024 are accepted"),
    ],
)
def test_what_is_over_a_limit_is_named_with_its_value_and_its_range(message, text):
    limits = SENT_FRAME if isinstance(message, pb.Frame) else Limits(type(message))
    with pytest.raises(LimitError) as raised:
        limits.parse(message.SerializeToString())
    assert text in str(raised.value)


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = field(5, content)
    return field(4, content)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (number_field(5, 1) + number_field(5, 1), "training_samples comes more than 1 times"),
        (number_field(99, 1) * 65_537, "the message has too many fields"),
        (nested(200), "its messages are more than 8 deep in each other"),
        (b"\x28" + padded(1, 3), "is no canonical protobuf message: a number takes more bytes than it must"),
        (field(4, field(2, b"\x80")), "is no valid protobuf message: it is truncated"),
        (field(3, b"\xff\xfe"), "is no valid protobuf message"),  # no UTF-8
        (field(12, field(1, field(2, b"\x00" * 7))), "is no valid protobuf message"),
    ],
)
def test_bytes_that_no_writer_writes_are_refused(data, text):
    with pytest.raises(LimitError) as raised:
        Limits(pb.JoinRequest).parse(data)
    assert text in str(raised.value)


def test_texts_for_people_are_cut():
    join = pb.JoinRequest(software="s" * 60_000, device="d" * 500)
    assert Limits(pb.JoinRequest).parse(join.SerializeToString()) == pb.JoinRequest(
        software="s" * 200, device="d" * 500
    )
    leave = pb.LeaveRequest(reason="ü" * 30_000)
    assert Limits(pb.LeaveRequest).parse(leave.SerializeToString()).reason == "ü" * 500


def test_lists_of_numbers_may_come_in_one_field_or_each_in_its_own():
    apart = field(4, number_field(2, 3) + number_field(2, 4))
    together = field(4, field(2, b"\x03\x04"))
    for data in (apart, together):
        assert list(Limits(pb.JoinRequest).parse(data).tensors[0].shape) == [3, 4]
    projections = field(12, field(1, field(2, struct.pack("<2d", 1.0, math.inf))))
    assert list(Limits(pb.JoinRequest).parse(projections).sketch.groups[0].projections) == [1.0, math.inf]


def test_fields_of_another_release_are_no_error():
    data = pb.LeaveRequest(session="s").SerializeToString() + field(99, b"new") + number_field(98, 7)
    assert Limits(pb.LeaveRequest).parse(data).session == "s"


@given(data=st.binary(max_size=80))
def test_whatever_comes_is_taken_or_refused_in_words(data):
    for message in REQUESTS:
        try:
            parsed = Limits(message).parse(data)
        except LimitError:
            continue
        try:
            assert parsed.SerializeToString() == message.FromString(data).SerializeToString()
        except DecodeError as error:  # pragma: no cover
            raise AssertionError("protobuf does not take it") from error


def test_the_sketches_limits_are_those_of_its_class():
    groups = pb.Sketch.DESCRIPTOR.fields_by_name["groups"]
    fields = pb.GroupSketch.DESCRIPTOR.fields_by_name
    limits = [f.GetOptions() for f in (groups, fields["projections"], fields["name"])]
    assert [f"count: {MAX_GROUPS}", f"count: {PROJECTIONS}", f"bytes: {4 * MAX_NAME_LENGTH}"] == [
        next(line.strip() for line in str(options).splitlines() if "count" in line or "bytes" in line)
        for options in limits
    ]


def test_a_text_that_people_read_is_one_line_of_printable_characters():
    sent = pb.LeaveRequest(
        device="a", reason="gone\r\n2026 ERROR  all\tlost \x1b[2J\x1b]0;title\x07 \u202etxt" + "x" * 500
    )
    told = Limits(pb.LeaveRequest).parse(sent.SerializeToString()).reason
    assert told.startswith("gone 2026 ERROR all lost \ufffd[2J\ufffd]0;title\ufffd \ufffdtxtxx")
    assert len(told) <= 500
