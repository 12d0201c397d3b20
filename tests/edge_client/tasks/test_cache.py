import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edge_client.tasks import cache
from edge_client.tasks.cache import ENVIRONMENT, cache_folder, cached


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "kept"))
    return tmp_path / "kept"


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": torch.arange(1_000.0).reshape(10, 100), "b": torch.tensor([True, False]), "c": torch.tensor(3)}


def assert_whole(tensors):
    assert {key: (value.dtype, value.tolist()) for key, value in tensors.items()} == {
        key: (value.dtype, value.tolist()) for key, value in Maker()().items()
    }


def test_what_was_made_once_is_read_the_next_time(folder):
    maker = Maker()
    assert_whole(cached("things-1", maker))
    assert_whole(cached("things-1", maker))
    assert maker.calls == 1
    assert_whole(cached("things-2", maker))
    assert maker.calls == 2
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "things-1.safetensors",
        "things-2.safetensors",
    ]
    assert not list(folder.glob(".*.safetensors.*"))


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "folder-entry"])
def test_a_damaged_file_is_made_anew(folder, damage):
    maker = Maker()
    cached("things", maker)
    path = folder / "things.safetensors"
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    contents = {"empty": b"", "cut": whole[:-100], "flipped": flipped, "text": b"no tensors", "folder-entry": whole[:7]}
    path.write_bytes(contents[damage])
    assert_whole(cached("things", maker))
    assert maker.calls == 2
    assert path.read_bytes() == whole
    assert_whole(cached("things", maker))
    assert maker.calls == 2


def test_a_crash_while_writing_leaves_the_folder_clean(folder, monkeypatch):
    def crash(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            cached("things", Maker())
    assert [path.name for path in folder.iterdir()] == ["things.safetensors.lock"]
    assert_whole(cached("things", Maker()))


def test_a_full_disk_costs_only_the_time(monkeypatch, caplog):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", fail)
    maker = Maker()
    assert_whole(cached("things", maker))
    assert maker.calls == 1
    assert "No space left on device" in caplog.text


def test_a_folder_that_cannot_be_made_costs_only_the_time(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "file" / "kept"))
    maker = Maker()
    assert_whole(cached("things", maker))
    assert maker.calls == 1
    assert "things is made without it" in caplog.text


def test_a_lock_that_is_never_freed_is_not_waited_for_for_ever(folder, monkeypatch, caplog):
    folder.mkdir()
    monkeypatch.setattr(cache, "_LOCK_S", 0.1)
    with cache.FileLock(folder / "things.safetensors.lock"):
        assert_whole(cached("things", Maker()))
    assert "things.safetensors.lock" in caplog.text


def test_the_folder_follows_the_convention(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/edgenewton")
    monkeypatch.setenv("HOME", "/home/me")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == Path("/home/me/.cache/edgenewton")


_CHILD = """
import hashlib, os, sys, torch
from edge_client.tasks.cache import cached

def make():
    sys.stdout.write("made ")
    sys.stdout.flush()
    sys.stdin.readline()   # the test says when the other process waits too
    return {"a": torch.randn(1_000, generator=torch.Generator().manual_seed(os.getpid()))}

print("asks", flush=True)
print(hashlib.sha256(cached("things", make)["a"].numpy().tobytes()).hexdigest())
"""


def test_of_two_processes_that_ask_at_once_one_makes_it():
    processes = [
        subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "asks\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.stdout.read().split() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(map(len, answers)) == [1, 2]
    assert answers[0][-1] == answers[1][-1]
    assert len(answers[0][-1]) == 64
