"""The record on disk: readable after a kill at any instant, and enough to go on from."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from edgenewton.v1.fingerprint import TensorSpec

from coordinator.decisions import Phase
from coordinator.record import Record, RecordError
from coordinator.settings import SessionSettings

SPECS = (TensorSpec("w", (2, 3)), TensorSpec("A", (6,), kind="curvature"))


def test_a_session_comes_back_as_it_was(tmp_path):
    record = Record(tmp_path / "a" / "record.sqlite")
    settings = SessionSettings(devices=2, codec="topk", topk_fraction=0.05)
    record.begin_session("s", settings)
    record.begin_session("over", settings)
    record.set_model("s", SPECS, {"lr": "0.1"})
    record.set_phase("over", Phase.ENDED, "done")
    record.set_phase("s", Phase.TRAINING, "all joined")
    record.set_committed("s", 41)
    for device, state in (("a", "member"), ("b", "lost"), ("c", "finished")):
        record.set_device("s", device, state)
    record.close()
    (found,) = Record(tmp_path / "a" / "record.sqlite").resumable()
    assert (found.name, found.settings, found.phase, found.committed) == ("s", settings, Phase.TRAINING, 41)
    assert (found.fingerprint, found.options, found.devices) == (SPECS, {"lr": "0.1"}, ["a", "b"])


WRITER = """
import sys
from pathlib import Path
from coordinator.record import Record
from coordinator.settings import SessionSettings
record = Record(Path(sys.argv[1]))
record.begin_session("s", SessionSettings())
step = 0
while True:
    record.set_committed("s", step)
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
    (found,) = Record(path).resumable()
    assert found.committed in (told, told + 1)


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
