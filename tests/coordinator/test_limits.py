import pytest
from certificates import audited

from coordinator.identity.audit import AuditLog
from coordinator.identity.limits import LimitBook, Limits
from coordinator.refusal import RefusedError, Status


def taken(book: LimitBook, name: str, now: float, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            book.take_message(name, now)
        except RefusedError as error:
            assert error.status is Status.RESOURCE_EXHAUSTED
            assert f"{name!r} sends more than 10 messages in a second" in error.reason
        else:
            count += 1
    return count


def test_messages_are_counted_for_each_identity():
    book = LimitBook(Limits(messages_per_s=10, burst_s=2))
    assert taken(book, "a", 0.0, 50) == 20  # the burst
    assert taken(book, "b", 0.0, 5) == 5  # another's do not count
    assert taken(book, "a", 0.5, 50) == 5  # 10 in a second since then
    assert taken(book, "a", 0.5, 50) == 0
    assert taken(book, "a", 1_000.0, 50) == 20  # quiet time saves up no more than the burst
    assert taken(book, "a", 999.0, 50) == 0  # a clock that goes back gives nothing


def test_streams_are_counted_while_they_are_open():
    book = LimitBook(Limits(streams=2))
    book.open_stream("a")
    book.open_stream("a")
    with pytest.raises(RefusedError, match="'a' has 2 streams open already") as raised:
        book.open_stream("a")
    assert raised.value.status is Status.RESOURCE_EXHAUSTED
    book.open_stream("b")
    book.close_stream("a")
    book.open_stream("a")


def test_the_audit_log_is_bounded_and_private(tmp_path):
    path = tmp_path / "log" / "audit.jsonl"
    log = AuditLog(path, max_bytes=2_000, kept=2)
    for number in range(200):
        log.joined("s", f"d{number}", None, "ipv4:127.0.0.1:1")
    log.close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(file.stat().st_size <= 2_000 for file in files)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert audited(path)[-1]["device"] == "d199"


def test_one_who_is_refused_over_and_over_does_not_fill_the_audit_log(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(500):
        log.refused("PERMISSION_DENIED", "x" * 5_000, "s", "d", None, f"ipv4:10.0.0.1:{number}")
    log.refused("PERMISSION_DENIED", "another", "s", "d", None, "ipv4:10.0.0.2:1")
    log.close()
    lines = audited(tmp_path / "audit.jsonl", "refused")
    assert 20 <= len(lines) < 100
    assert lines[-1]["reason"] == "another"
    assert len(lines[0]["reason"]) == 500
