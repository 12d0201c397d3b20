"""Limits and the audit log: plain Python, given the time."""

import json
import stat

import pytest
from edgenewton.v1 import exchange_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from coordinator.identity.audit import AuditLog
from coordinator.identity.limits import IdentityLimits, LimitBook, TokenBucket
from coordinator.session.refusal import RefusedError, Status


@given(
    rate=st.floats(0.1, 100),
    capacity=st.floats(1, 50),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_a_bucket_never_lets_more_through_than_its_rate_and_its_burst(rate, capacity, pauses):
    now = 0.0
    bucket = TokenBucket.full(rate, capacity, now)
    taken = [0.0]
    for pause in pauses:
        now += pause
        if bucket.take(now):
            taken.append(now)
    for first in range(1, len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= capacity + rate * (taken[last] - taken[first]) + 1e-6


def test_a_bucket_lets_its_rate_through():
    bucket = TokenBucket.full(10.0, 5.0, 0.0)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert sum(bucket.take(0.1 * tick + 0.05) for tick in range(1, 101)) == 100
    assert not bucket.take(0.0)
    assert not bucket.take(10.05)  # a clock that went backwards has added nothing


def test_identities_have_buckets_and_streams_of_their_own():
    book = LimitBook(IdentityLimits(messages_per_s=1.0, burst_s=2.0, streams=1))
    for _ in range(2):
        book.take_message("a", 0.0)
    with pytest.raises(RefusedError, match="'a' sends more than 1 messages") as raised:
        book.take_message("a", 0.0)
    assert raised.value.status is Status.RESOURCE_EXHAUSTED
    book.take_message("b", 0.0)
    book.take_message("a", 1.0)
    book.open_stream("a")
    with pytest.raises(RefusedError, match="'a' has 1 streams open already"):
        book.open_stream("a")
    book.open_stream("b")
    book.close_stream("a")
    book.open_stream("a")


def test_the_audit_log_is_bounded_and_private(tmp_path):
    path = tmp_path / "audit" / "audit.jsonl"
    audit = AuditLog(path, max_bytes=2_000, kept=2)
    for index in range(100):
        audit.joined("s", f"device-{index}", None, "ipv4:127.0.0.1:5")
    audit.close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    lines = [json.loads(line) for file in reversed(files) for line in file.read_text().splitlines()]
    assert lines[-1]["device"] == "device-99"
    assert all(file.stat().st_size <= 2_000 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)


def test_a_flood_of_refusals_of_one_caller_leaves_room_for_the_others(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    for port in range(500):
        audit.refused("NOT_FOUND", "x" * 10_000, "s", "d", None, f"ipv4:10.0.0.1:{port}", now=1.0)
    audit.refused("NOT_FOUND", "no", "s", "e", None, "ipv4:10.0.0.2:1", now=1.0)
    audit.refused("NOT_FOUND", "again", "s", "d", None, "ipv4:10.0.0.1:1", now=3.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 22
    assert max(len(line["reason"]) for line in lines) == 500
    assert lines[-2]["device"] == "e"
    assert lines[-1]["unwritten"] == 480


def test_what_a_device_contributed_is_added_up_until_it_leaves(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    for step in range(3):
        for device, samples in (("a", 5), ("b", 7)):
            audit.apply(pb.SessionEvent(session="s", report=pb.DeviceReport(device=device, step=step, samples=samples)))
    audit.apply(pb.SessionEvent(session="s", left=pb.DeviceLeft(device="a", reason="finished", bytes_received=9)))
    (line,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (line["event"], line["device"], line["status"]) == ("left", "a", "OK")
    assert (line["steps"], line["samples"], line["bytes_received"]) == (3, 15, 9)
