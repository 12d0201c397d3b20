"""Writes files so that a crash at any time leaves either the old file or the new one, and sets damaged ones aside.

A file that is overwritten may keep its last generation beside it, as NAME.previous. Whoever removes NAME begins anew:
NAME.previous alone is never read.
"""

import glob
import itertools
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from edgenewton.common.failpoints import failpoint

_LEFTOVER_AFTER_S = 3_600.0
"""Nobody writes one file for so long: what is older was left behind by a process that was killed."""
_written = itertools.count(1)
"""Numbers the files that this process writes, for failpoints."""


def previous_of(path: Path) -> Path:
    """Return where the last generation of a file is."""
    return path.with_name(path.name + ".previous")


def damaged_of(path: Path) -> Path:
    """Return where a damaged file is set aside."""
    return path.with_name(path.name + ".damaged")


def write_atomically(path: Path, data: bytes, mode: int = 0o644, *, keep_previous: bool = False) -> None:
    """Write a file beside its place, force it to the disk, and rename it; missing folders are made.

    Args:
        path: of the file.
        data: its content.
        mode: its permissions.
        keep_previous: whether the file that was there stays, as `previous_of(path)`.

    Raises:
        OSError: it cannot be written; `filename` is the path. The file that was there stays as it is.

    """
    number = next(_written)
    temporary: Path | None = None
    try:
        make_folder(path.parent)
        _remove_leftovers(path)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            os.fchmod(descriptor, mode)
            half = len(data) // 2
            _write_all(descriptor, memoryview(data)[:half])
            failpoint("file-half-written", number)
            _write_all(descriptor, memoryview(data)[half:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        failpoint("file-written", number)
        is_first = not path.exists()
        if keep_previous and not is_first:
            _keep_previous(path)
            failpoint("previous-kept", number)
        temporary.replace(path)
        failpoint("file-named", number)
        if keep_previous and is_first:
            previous_of(path).unlink(missing_ok=True)  # it is of files before somebody began anew
        sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def adopt(temporary: Path, path: Path) -> None:
    """Let a file that another library wrote, beside its place, take it.

    Raises:
        OSError: it cannot be forced to the disk, or renamed.

    """
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nothing reads it again and nothing is lost; return its new path.

    Raises:
        OSError: it cannot be renamed.

    """
    aside = damaged_of(path)
    path.replace(aside)
    sync_folder(path.parent)
    return aside


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and force their names to the disk; one that exists is left alone.

    Raises:
        OSError: it cannot be made.

    """
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in missing:
        sync_folder(part.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _keep_previous(path: Path) -> None:
    """Give the file a second name; at no instant is it without its own."""
    previous = previous_of(path)
    temporary = path.with_name(f".{previous.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # some file systems have no second names
        shutil.copy2(path, temporary)
    temporary.replace(previous)


def _remove_leftovers(path: Path) -> None:
    now = time.time()
    for other in path.parent.glob(f".{glob.escape(path.name)}.????????"):  # as `tempfile` names them
        with suppress(OSError):
            if now - other.stat().st_mtime > _LEFTOVER_AFTER_S:
                other.unlink()
