"""The record on disk: readable after a kill at any instant, and enough to go on from."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.decisions import Phase
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.history import History, StepRecord
from coordinator.telemetry.record import Record, RecordError
from coordinator.telemetry.statistics import Incident


def step_record(step, **fields):
    usual = {"seconds": 0.25, "samples": 8, "devices": 2, "left_out": 0, "loss": 1.5, "correct": None, "tried": None}
    return StepRecord(
        step=step, time_s=100.0 + step, received=10 * step, sent=20 * step, saved=5 * step, **usual | fields
    )


SPECS = (TensorSpec("w", (2, 3)), TensorSpec("A", (6,), kind="curvature"))


def test_a_session_comes_back_as_it_was(tmp_path):
    record = Record(tmp_path / "a" / "record.sqlite")
    settings = SessionSettings(devices=2, codec="topk", topk_fraction=0.05)
    record.begin_session("s", settings)
    record.begin_session("over", settings)
    record.set_model("s", SPECS, {"lr": "0.1"})
    record.set_phase("over", Phase.ENDED, "done")
    record.set_phase("s", Phase.TRAINING, "all joined")
    record.set_committed("s", step_record(41))
    for device, state in (("a", "member"), ("b", "lost"), ("c", "finished")):
        record.set_device("s", device, state)
    record.close()
    (found,) = Record(tmp_path / "a" / "record.sqlite").resumable()
    assert (found.name, found.settings, found.phase, found.committed) == ("s", settings, Phase.TRAINING, 41)
    assert (found.fingerprint, found.options, found.devices) == (SPECS, {"lr": "0.1"}, ["a", "b"])


WRITER = """
import sys
from pathlib import Path
from coordinator.telemetry.record import Record
from coordinator.telemetry.history import StepRecord
from coordinator.session.settings import SessionSettings
record = Record(Path(sys.argv[1]))
record.begin_session("s", SessionSettings())
step = 0
while True:
    record.set_committed("s", StepRecord(step, 0.0, 0.1, 8, 2, 0, 0.5, None, None, step, step, 0))
    print(step, flush=True)
    step += 1
"""


def test_a_kill_at_any_instant_leaves_the_last_step_or_the_one_after_it(tmp_path):
    path = tmp_path / "record.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    for line in writer.stdout:
        if int(line) >= 50:
            os.kill(writer.pid, signal.SIGKILL)
            break
    told = max([50, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    writer.wait()
    record = Record(path)
    (found,) = record.resumable()
    assert found.committed in (told, told + 1)
    # A step is in the history if and only if it is the session's.
    assert [step.step for step in record.history.steps("s")] == list(range(found.committed + 1))


def test_files_that_are_no_record_are_named(tmp_path):
    path = tmp_path / "record.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(RecordError, match=r"record.sqlite cannot be used as the coordinator's record"):
        Record(path)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(RecordError, match="was written by a newer release"):
        Record(newer)


def test_the_history_stays_small_and_keeps_the_steps_at_which_the_model_was_tried(tmp_path):
    database = Record(tmp_path / "record.sqlite").history._database
    history = History(database, max_steps=100)
    for step in range(1_000):
        tried = {"correct": step, "tried": 1_000} if step % 10 == 1 else {}
        history.add("s", step_record(step, **tried))
        assert len(history.steps("s")) <= 100
    kept = history.steps("s")
    assert kept[0].step <= 1
    assert kept[-1] == step_record(999)
    assert kept == sorted(kept, key=lambda step: step.step)
    tried = [step for step in kept if step.tried]
    assert len(tried) >= 5
    assert all(step.accuracy == step.step / 1_000 for step in tried)


def test_a_step_that_is_done_again_replaces_the_first(tmp_path):
    record = Record(tmp_path / "record.sqlite")
    record.begin_session("s", SessionSettings())
    record.set_committed("s", step_record(3))
    record.set_committed("s", step_record(3, loss=0.5))
    assert record.history.steps("s") == [step_record(3, loss=0.5)]
    record.begin_session("s", SessionSettings())
    assert record.history.steps("s") == []


OLD_STATISTICS = """
{"totals": {"codec": "int8", "phase": "training", "reason": "because", "began_at": 1.0, "ended_at": null, "step": 0,
  "steps": 1, "samples": 16, "left_out": 1, "step_seconds": 0.2,
  "step_buckets": [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
  "received": 5, "sent": 6, "saved": 7},
 "refusals": {"INVALID_ARGUMENT": 1},
 "devices": [
  {"device": "a", "state": "training", "software": "x 1", "training_samples": 7, "step": 0, "batches": 1, "loss": 1.0,
   "lag_s": 0.0, "received": 5, "sent": 6, "saved": 7, "received_per_s": 1.25, "sent_per_s": 1.5, "left_out": 0,
   "healings": 0, "last_error": "a frame broke the contract", "last_error_at": 3.0, "joined_at": 0.0, "seen_at": 1.5}],
 "happenings": [{"time_s": 0.0, "kind": "joined", "step": null, "device": "a", "text": "x 1"}],
 "refused": [{"time_s": 3.0, "kind": "refused", "step": 0, "device": "a", "text": "INVALID_ARGUMENT: broken"}]}
"""
"""As they were stored while incidents had another name."""


def test_statistics_that_were_stored_under_an_old_name_are_read(tmp_path):
    record = Record(tmp_path / "record.sqlite")
    record.begin_session("s", SessionSettings())
    record.history._database.execute("INSERT INTO statistics VALUES ('s', ?)", (OLD_STATISTICS,))
    found = record.statistics("s")
    assert list(found.incidents) == [Incident(0.0, "joined", None, "a", "x 1")]
    assert list(found.refused) == [Incident(3.0, "refused", 0, "a", "INVALID_ARGUMENT: broken")]
    assert (found.codec, found.phase, found.steps, found.samples, found.received) == ("int8", "training", 1, 16, 5)
    assert (found.refusals["INVALID_ARGUMENT"], sum(found.step_buckets)) == (1, 1)
    assert (found.devices["a"].batches, found.devices["a"].last_error) == (1, "a frame broke the contract")
    assert (found.skipped, found.devices["a"].skipped) == (0, 0)  # nobody counted them
    found.skipped = found.devices["a"].skipped = 3
    record.set_statistics(found)
    assert record.statistics("s").incidents == found.incidents
    assert (record.statistics("s").skipped, record.statistics("s").devices["a"].skipped) == (3, 3)


@pytest.mark.parametrize("content", ["{", "[]", '{"totals": {}}', OLD_STATISTICS.replace("happenings", "x")])
def test_statistics_that_cannot_be_read_are_an_error_with_the_file(tmp_path, content):
    record = Record(tmp_path / "record.sqlite")
    record.history._database.execute("INSERT INTO statistics VALUES ('s', ?)", (content,))
    with pytest.raises(RecordError, match=r"record.sqlite is damaged"):
        record.statistics("s")


def test_a_record_of_the_release_before_is_gone_on_with(tmp_path):
    path = tmp_path / "record.sqlite"
    record = Record(path)
    record.begin_session("s", SessionSettings(devices=1))
    record.close()
    with sqlite3.connect(path) as database:
        database.executescript("DROP TABLE steps; DROP TABLE statistics; PRAGMA user_version = 1")
    record = Record(path)
    assert [found.name for found in record.resumable()] == ["s"]
    assert record.history.steps("s") == []


def test_an_operator_may_say_anew_whom_a_resumed_session_trusts(tmp_path):
    record = Record(tmp_path / "record.sqlite")
    record.begin_session("s", SessionSettings(devices=2, codec="int8", model_of="b"))
    (known,) = record.resumable()
    told = known.told(trust_state_of=("a",))
    assert (told.settings.codec, told.settings.model_of, told.settings.trust_state_of) == ("int8", "b", ("a",))
    assert known.settings.trust_state_of == ()
    record.close()
