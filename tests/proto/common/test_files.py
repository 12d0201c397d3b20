import errno
import os
import signal
import time

import pytest
from broken_disks import full_disk, read_only
from edgenewton.common import failpoints, files
from edgenewton.common.failpoints import FILE_FAILPOINTS
from edgenewton.common.files import damaged_of, previous_of, set_aside, write_atomically


def test_the_file_before_stays_beside_the_new_one(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for number in range(3):
        write_atomically(path, b"%d" % number, mode=0o600, keep_previous=True)
    assert (path.read_bytes(), previous_of(path).read_bytes()) == (b"2", b"1")
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(other.name for other in path.parent.iterdir()) == ["file", "file.previous"]
    path.unlink()  # somebody begins anew
    write_atomically(path, b"new", keep_previous=True)
    assert [other.name for other in path.parent.iterdir()] == ["file"]


def test_where_files_have_no_second_names_the_file_before_is_copied(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for content in (b"1", b"2"):
        write_atomically(tmp_path / "file", content, keep_previous=True)
    assert previous_of(tmp_path / "file").read_bytes() == b"1"


@pytest.mark.parametrize("point", FILE_FAILPOINTS)
@pytest.mark.parametrize("keep_previous", [True, False])
def test_a_kill_in_the_middle_of_writing_leaves_the_old_file_or_the_new_one(tmp_path, point, keep_previous):
    path = tmp_path / "file"
    write_atomically(path, b"old" * 1_000)
    child = os.fork()
    if child == 0:
        try:
            files._written = iter([1])
            failpoints.arm(f"{point}@1")
            write_atomically(path, b"new" * 1_000, keep_previous=keep_previous)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    is_killed = keep_previous or point != "previous-kept"
    assert (os.WTERMSIG(status) == signal.SIGKILL) is is_killed
    is_new = point == "file-named" or not is_killed
    assert path.read_bytes() == (b"new" if is_new else b"old") * 1_000
    if keep_previous and point in ("previous-kept", "file-named"):
        assert previous_of(path).read_bytes() == b"old" * 1_000


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path):
    path = tmp_path / "file"
    for name, age_s in ((".file.abcdefgh", 4_000), (".file.ABCDEFGH", 60), (".file2.abcdefgh", 4_000)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    write_atomically(path, b"x")
    assert sorted(other.name for other in tmp_path.iterdir()) == [".file.ABCDEFGH", ".file2.abcdefgh", "file"]


def test_a_full_disk_leaves_the_old_files_and_names_the_path(tmp_path):
    path = tmp_path / "file"
    for content in (b"1" * 900, b"2" * 900):
        write_atomically(path, content, keep_previous=True)
    with full_disk(1_000), pytest.raises(OSError, match="File too large") as raised:
        write_atomically(path, b"3" * 1_001, keep_previous=True)
    assert raised.value.filename == str(path)
    assert (path.read_bytes()[:1], previous_of(path).read_bytes()[:1]) == (b"2", b"1")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_disk_that_fails_at_any_call_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        write_atomically(path, b"new")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [other.name for other in tmp_path.iterdir()] == ["file"]


def test_a_read_only_disk_leaves_the_old_file_and_names_the_path(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        read_only(patch, tmp_path)
        with pytest.raises(OSError, match="Read-only file system") as raised:
            write_atomically(path, b"new")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    with pytest.raises(OSError, match="File exists"):
        write_atomically(path / "below", b"new")


def test_a_damaged_file_is_set_aside(tmp_path):
    (tmp_path / "file").write_bytes(b"bad")
    assert set_aside(tmp_path / "file") == damaged_of(tmp_path / "file")
    assert [(other.name, other.read_bytes()) for other in tmp_path.iterdir()] == [("file.damaged", b"bad")]
