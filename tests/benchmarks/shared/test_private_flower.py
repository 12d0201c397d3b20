import os
import signal
from pathlib import Path

import pytest

from benchmarks.shared import private_flower as module
from benchmarks.shared.private_flower import FlowerError, PrivateFlower, private_flower


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """Undo that a shell lets what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Return a function that gives the command lines of the processes that this test started and that are alive."""
    mark = f"EDGENEWTON_TEST={tmp_path}".encode()
    monkeypatch.setenv("EDGENEWTON_TEST", str(tmp_path))

    def alive() -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    return alive


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """Return where temporary folders are made in this test."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", str(folder))
    return folder


def interrupt_once(monkeypatch, owner, name):
    """Let Ctrl-C arrive when `owner.name` is called for the first time."""
    real, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(name)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("place", ["while it starts", "while the process is made"])
def test_ctrl_c_in_the_start_leaves_no_process(monkeypatch, tmp_path, started, temporary, place):
    owner, name = (module.httpx, "get") if place == "while it starts" else (module.subprocess, "Popen")
    interrupt_once(monkeypatch, owner, name)
    with pytest.raises(KeyboardInterrupt), private_flower(tmp_path):
        raise AssertionError("it was not interrupted")
    assert started() == []
    assert list(temporary.iterdir()) == []


def test_ctrl_c_in_the_stop_waits_until_all_is_ended(monkeypatch, tmp_path, started, temporary):
    flower = PrivateFlower(tmp_path)
    flower.start()
    assert any("flower-superlink" in command for command in started())
    interrupt_once(monkeypatch, module.os, "killpg")
    with pytest.raises(KeyboardInterrupt):
        flower.stop()
    assert started() == []
    assert list(temporary.iterdir()) == []
    assert (tmp_path / "superlink.log").exists()


def test_a_superlink_that_does_not_start_is_said_with_its_log(monkeypatch, tmp_path, started, temporary):
    monkeypatch.setattr(module, "flower_command", lambda name, programs: "/bin/false")
    with pytest.raises(FlowerError, match=f"did not start; see {tmp_path}/superlink.log"), private_flower(tmp_path):
        pass
    assert list(temporary.iterdir()) == []
