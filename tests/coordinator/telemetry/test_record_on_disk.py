"""A coordinator's record on disks that fail: damage is noticed, the record before it is used, and sessions go on."""

import logging
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from broken_disks import damages, flipped, full_disk
from edgenewton.v1.tensor_spec import TensorSpec
from session_events import joined

from coordinator.session import decisions as d
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.telemetry import record_file
from coordinator.telemetry.chronicle import Chronicle
from coordinator.telemetry.history import SCHEMA as HISTORY_SCHEMA
from coordinator.telemetry.history import StepRecord
from coordinator.telemetry.record import _SCHEMA, Phase, Record, RecordError
from coordinator.telemetry.statistics import SessionStatistics
from coordinator.telemetry.stored import dump_statistics

SPECS = (TensorSpec("w", (2, 3)), TensorSpec("A", (6,), kind="curvature"))


def step(number):
    return StepRecord(number, 100.0 + number, 0.25, 8, 2, 0, 1.5 + number, None, None, 10 * number, 20, 5)


def statistics(name):
    found = SessionStatistics(name)
    found.apply(joined("a"))
    return found


def fill(path, steps=5):
    record = Record(path)
    record.begin_session("s", SessionSettings(devices=2))
    record.set_model("s", SPECS, {"lr": "0.1"})
    record.set_phase("s", Phase.TRAINING, "all joined")
    record.set_device("s", "ä", "member")
    for number in range(steps):
        record.set_committed("s", step(number))
    record.set_statistics(statistics("s"))
    record.close()


def content(record):
    return record.sessions(), record.steps("s"), dump_statistics(record.statistics("s"))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "runs" / "record.sqlite"
    fill(path)
    return path


def test_every_flipped_bit_that_changes_something_is_noticed(path):
    whole = path.read_bytes()
    record = Record(path, read_only=True)
    expected = content(record)
    record.close()
    used = [place for place, byte in enumerate(whole) if byte]  # most of a small database is empty
    places = np.random.default_rng(0).choice(used, 150, replace=False)
    refused = []
    for place in (*range(0, 100, 2), *map(int, places)):
        path.write_bytes(flipped(whole, 8 * place + place % 8))
        try:
            record = Record(path, read_only=True)
            assert content(record) == expected, place
            record.close()
        except RecordError as error:
            refused.append(str(error))
    assert len(refused) > 120
    assert all(text.startswith(f"{path} ") and "\n" not in text for text in refused)


def test_whatever_is_left_of_a_record_the_one_before_is_used(path, caplog):
    whole, before = path.read_bytes(), path.with_name("record.sqlite.previous").read_bytes()
    for name, data in damages(whole).items():
        if name in ("one byte more", "a block of garbage"):  # SQLite passes over it; and nothing is there
            continue
        path.write_bytes(data)
        path.with_name("record.sqlite.previous").write_bytes(before)
        caplog.clear()
        record = Record(path)
        (found,) = record.resumable()
        assert (found.committed, found.fingerprint, found.devices) == (4, SPECS, ["ä"]), name
        record.close()
        assert f"{path} is damaged: " in caplog.text
        assert f"it is set aside as {path}.damaged, and {path}.previous takes its place" in caplog.text
        assert path.with_name("record.sqlite.damaged").read_bytes() == data


def test_a_damaged_record_without_one_before_is_named_with_the_way_out(path):
    path.write_bytes(path.read_bytes()[:5_000])
    path.with_name("record.sqlite.previous").unlink()
    for _ in range(2):  # it stays where it is
        with pytest.raises(RecordError) as raised:
            Record(path)
        assert f"{path} cannot be used as the coordinator's record, it is damaged or something else: " in str(
            raised.value
        )
        assert "there is no good record.sqlite.previous beside it: name another file" in str(raised.value)


def test_text_that_is_no_utf8_is_a_sentence(path):
    data = path.read_bytes()
    path.write_bytes(data.replace("ä".encode(), b"\xc3\xff"))
    with pytest.raises(RecordError, match=r"record.sqlite cannot be used as .*: Could not decode to UTF-8"):
        Record(path, read_only=True)


def test_a_changed_or_missing_row_is_noticed(path):
    for statement in ("UPDATE steps SET loss = 9 WHERE step = 2", "DELETE FROM devices", "DELETE FROM seals"):
        copy = path.with_name("copy.sqlite")
        shutil.copy(path, copy)
        with closing(sqlite3.connect(copy, isolation_level=None)) as database:
            for table, event in (("steps", "update"), ("devices", "delete")):
                database.execute(f"DROP TRIGGER seal_{table}_{event}")
            database.execute(statement)
        with pytest.raises(RecordError, match="is not what was written|lacks the entry"):
            Record(copy, read_only=True)


def test_a_record_of_an_earlier_release_gets_digests(tmp_path, caplog):
    path = tmp_path / "record.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(_SCHEMA + HISTORY_SCHEMA)
        database.execute("PRAGMA user_version = 2")
        settings = SessionSettings().model_dump_json()
        database.execute("INSERT INTO sessions VALUES ('s', ?, 'training', '', 3, NULL, '{}', 1)", (settings,))
    reader = Record(path, read_only=True)
    assert reader.sessions()[0].committed == 3
    reader.close()
    Record(path).close()
    assert caplog.messages == [f"{path} carries no digests, as an earlier release wrote it; it gets them now"]
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        assert database.execute("SELECT of FROM seals").fetchall() == [("sessions",)]
        database.execute("DROP TRIGGER seal_sessions_update")
        database.execute("UPDATE sessions SET committed = 4")
    with pytest.raises(RecordError, match="the entry .*s.* of its table sessions is not what was written"):
        Record(path, read_only=True)


def test_a_copy_is_kept_once_a_minute(path, monkeypatch):
    record = Record(path)
    record.set_committed("s", step(50))
    record.set_statistics(statistics("s"))
    previous = path.with_name("record.sqlite.previous")

    def committed():
        reader = Record(previous, read_only=True)
        (found,) = reader.sessions()
        reader.close()
        return found.committed

    assert committed() == 4
    monkeypatch.setattr(record_file, "KEEP_EVERY_S", 0.0)
    record.set_statistics(statistics("s"))
    assert committed() == 50
    record.close()


# ---------------------------------------------------------------- disks that refuse


def full(record, monkeypatch, pages=0):
    """Let SQLite find the disk full: the file may not grow."""
    (now,) = record._database.execute("PRAGMA page_count").fetchone()
    record._database.execute(f"PRAGMA max_page_count = {now + pages}")
    monkeypatch.setattr(record_file, "RETRY_S", 0.0)


def test_on_a_full_disk_a_session_goes_on_and_nothing_is_lost(path, monkeypatch, caplog):
    record = Record(path)
    full(record, monkeypatch)
    for number in range(5, 400):
        record.set_committed("s", step(number))
    record.begin_session("t", SessionSettings(devices=3))
    record.set_device("t", "b", "member")
    assert record.trouble == "database or disk is full"
    lines = [message for message in caplog.messages if "cannot be written" in message]
    assert lines == [
        f"the record {path} cannot be written: database or disk is full; sessions go on, and it is tried again"
    ]
    committed = record.sessions()[0].committed
    assert committed < 399
    assert len(record.steps("s")) == committed + 1  # what is there is consistent
    record._database.execute("PRAGMA max_page_count = 100000")
    record.set_device("t", "c", "member")
    assert record.trouble == ""
    assert caplog.messages[-1] == f"the record {path} is written again, and lacks nothing"
    record.close()
    record = Record(path)
    assert [found.step for found in record.steps("s")] == list(range(400))
    assert [(found.name, found.devices) for found in record.resumable()] == [("s", ["ä"]), ("t", ["b", "c"])]


def test_a_disk_that_became_read_only_is_said_when_the_record_is_closed(path, monkeypatch, caplog):
    record = Record(path)
    record._database.execute("PRAGMA query_only = ON")  # SQLite then refuses as it does on such a disk
    record.set_committed("s", step(9))
    assert "attempt to write a readonly database" in record.trouble
    record.close()
    assert caplog.messages[-1] == (f"the record {path} lacks its last 1 entries: attempt to write a readonly database")
    assert Record(path).sessions()[0].committed == 4


def test_so_much_waits_and_then_the_oldest_steps_go(path, monkeypatch):
    monkeypatch.setattr(record_file, "MAX_WAITING", 10)
    record = Record(path)
    record._database.execute("PRAGMA query_only = ON")
    for number in range(5, 30):
        record.set_committed("s", step(number))
        record.set_device("s", "b", "member")
    monkeypatch.setattr(record_file, "RETRY_S", 0.0)
    record._database.execute("PRAGMA query_only = OFF")
    record.set_committed("s", step(30))
    assert [found.step for found in record.steps("s")] == [*range(5), *range(22, 31)]
    assert record.sessions()[0].devices == ["b", "ä"]
    record.close()


def test_a_value_that_no_record_takes_is_an_error_at_once_and_blocks_nothing(path, monkeypatch, caplog):
    record = Record(path)
    bad = StepRecord(9, 1.0, 0.25, 2**63, 2, 0, 1.5, None, None, 1, 1, 1)
    with pytest.raises(OverflowError):
        record.set_committed("s", bad)
    record.set_committed("s", step(10))
    full(record, monkeypatch, pages=-1)
    record._database.execute("PRAGMA query_only = ON")
    record.set_committed("s", step(11))
    monkeypatch.setattr(record_file, "RETRY_S", 60.0)
    record.set_committed("s", bad)  # it waits with the others
    monkeypatch.setattr(record_file, "RETRY_S", 0.0)
    record._database.execute("PRAGMA query_only = OFF")
    record.set_committed("s", step(12))
    assert [found.step for found in record.steps("s")] == [0, 1, 2, 3, 4, 10, 11, 12]
    assert "cannot take ('step', 's', 9)" in caplog.text
    record.close()


def test_without_room_for_a_copy_the_record_goes_on(path, caplog):
    record = Record(path)
    with full_disk(4_096):
        record.set_phase("s", Phase.TRAINING, "again")
    assert f"the record {path} cannot be written: disk I/O error" in caplog.text
    record._file.keep_previous()
    record.close()
    assert Record(path).sessions()[0].reason == "again"


def test_the_page_shows_that_the_record_cannot_be_written(path, caplog):
    caplog.set_level(logging.CRITICAL)
    record = Record(path)
    chronicle = Chronicle(Session("s", SessionSettings()), publish=lambda event: None, record=record)
    record._database.execute("PRAGMA query_only = ON")
    chronicle.commit(d.StepCommitted(7, 8, 2, (), 0.5, None, 0.1))
    (incident,) = [incident for incident in chronicle.statistics.incidents if incident.kind == "record"]
    assert incident.text == f"the record {path} cannot be written: attempt to write a readonly database"
    record.close()
