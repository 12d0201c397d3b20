"""The folder that a command writes its results to: its own, one command at a time, and nobody else's files lost."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".lock"


class FolderError(RuntimeError):
    """A folder cannot be used for results; the text names it and says what to do."""


@contextlib.contextmanager
def output_folder(folder: Path, owner: str, results: Iterable[str]) -> Iterator[Path]:
    """Hold a folder for the length of a `with` block, without the results of an earlier run.

    A folder belongs to the command that first wrote to it, which leaves a marker there. Files that are no results of
    it are left alone.

    Args:
        folder: made if it does not exist.
        owner: name of the command, such as "demo".
        results: patterns of the names that the command writes; what they match is deleted at the beginning.

    Raises:
        FolderError: the folder has files but not the marker, is used by another run, or cannot be written.

    """
    marker = folder / f".edgenewton-{owner}"
    try:
        if folder.exists() and not marker.exists() and any(path.name != _LOCK for path in folder.iterdir()):
            raise FolderError(
                f"{folder} holds files that are not the {owner}'s; they were not touched. Name an empty folder with "
                "--output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderError(
            f"another {owner} writes to {folder} at this moment; wait for it, or name another folder with --output"
        ) from None
    except OSError as error:
        raise FolderError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        marker.touch()
        for pattern in results:
            for path in folder.glob(pattern):
                _delete(path)
        yield folder
    finally:
        lock.release()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
