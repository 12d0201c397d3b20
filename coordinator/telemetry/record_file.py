"""The SQLite file of a record: checked when it is opened, with the one before it beside it, and kept up on full disks.

What cannot be written is kept in memory, the latest of each entry, and is written as soon as that works again: a full
or broken disk stops no session, and loses nothing as long as the process lives.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edgenewton.common import sealed_rows
from edgenewton.common.file_report import RECORD_APPLICATION
from edgenewton.common.files import adopt, damaged_of, make_folder, previous_of
from edgenewton.common.sealed_file import DamagedError
from edgenewton.common.sealed_rows import add_functions, check_rows, is_damage, watch_rows

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Seconds between two tries to write while the disk refuses."""
KEEP_EVERY_S = 60.0
"""Seconds between two copies of the file, as long as it changes."""
MAX_WAITING = 5_000
"""So many changes wait for the disk; then the oldest steps are given up."""
_SIDE_FILES = ("-wal", "-shm")

Key = tuple[str | int, ...]


class RecordError(RuntimeError):
    """The record cannot be used; the text names the file and says why."""


class RecordFile:
    """The file, open for writing.

    Args:
        path: of the file; one that does not exist is made, with its folder.
        schema: makes the tables.
        version: of the format.

    Raises:
        RecordError: it cannot be opened, or it is damaged, and so is the one before it.

    """

    def __init__(self, path: Path, schema: str, version: int) -> None:
        self.path = path
        self.trouble = ""
        """Why it cannot be written; empty while it can."""
        self._schema = schema
        self._version = version
        self._waiting: dict[Key, Callable[[], None]] = {}
        self._tried_at = 0.0
        self._kept_at = time.monotonic()
        with _explained(path):
            make_folder(path.parent)
            try:
                self.database = self._open()
            except DamagedError as error:
                self._fall_back(str(error))
                self.database = self._open()
        if not self._is_empty():
            self.keep_previous()

    def change(self, key: Key, change: Callable[[], None]) -> bool:
        """Make a change in a transaction of its own, or let it wait while the disk refuses.

        Args:
            key: tells which entry it is about; a later change takes the place of one that waits.
            change: executes the statements.

        Returns:
            Whether it is on its way to the disk.

        """
        self._waiting.pop(key, None)
        self._waiting[key] = change
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next((k for k in self._waiting if k[0] == "step"), next(iter(self._waiting)))]
        now = time.monotonic()
        if self.trouble and now < self._tried_at + RETRY_S:
            return False
        self._tried_at = now
        return self._write()

    def drop_waiting(self, name: str) -> None:
        """Forget the changes that wait and are about a session."""
        self._waiting = {key: change for key, change in self._waiting.items() if key[1:2] != (name,)}

    def keep_previous(self) -> None:
        """Copy the file as it is now to where the one before it is."""
        self._kept_at = time.monotonic()
        previous = previous_of(self.path)
        temporary = self.path.with_name(f".{previous.name}.copy")
        try:
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(temporary)) as copy:
                self.database.backup(copy)
            adopt(temporary, previous)
        except (OSError, sqlite3.Error) as error:
            log.warning("%s cannot be written: %s", previous, getattr(error, "strerror", None) or error)
            temporary.unlink(missing_ok=True)

    def keep_previous_now_and_then(self) -> None:
        """Do that, unless it was done a short while ago."""
        if not self.trouble and time.monotonic() >= self._kept_at + KEEP_EVERY_S:
            self.keep_previous()

    def close(self) -> None:
        """Write what waits, if that works now, and close the file."""
        if self._waiting:
            self._write()
        if self._waiting:
            log.error("the record %s lacks its last %d entries: %s", self.path, len(self._waiting), self.trouble)
        elif not self._is_empty():
            self.keep_previous()
        self.database.close()

    def _write(self) -> bool:
        newest = next(reversed(self._waiting))
        while self._waiting:
            key = newest
            try:
                self.database.execute("BEGIN IMMEDIATE")
                with self.database:
                    for key, change in self._waiting.items():  # noqa: B007  # it names the one that fails
                        change()
            except Exception as error:
                if self.database.in_transaction:
                    self.database.rollback()
                if _is_of_the_disk(error):
                    self._tell(str(getattr(error, "strerror", None) or error))
                    return False
                del self._waiting[key]  # it is wrong, and would be so again
                if key == newest:
                    raise
                log.error("the record %s cannot take %s: %s", self.path, key, error)
            else:
                self._waiting.clear()
        if self.trouble:
            self.trouble = ""
            log.warning("the record %s is written again, and lacks nothing", self.path)
        return True

    def _tell(self, cause: str) -> None:
        if cause != self.trouble:
            log.error("the record %s cannot be written: %s; sessions go on, and it is tried again", self.path, cause)
        self.trouble = cause

    def _open(self) -> sqlite3.Connection:
        may_be_empty = not self.path.exists() or not previous_of(self.path).exists()
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            version = _checked_version(database, self.path, self._version)
            if not version and not may_be_empty:
                raise DamagedError("it is empty")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if version < self._version:
                database.executescript(self._schema)
                if version:
                    log.warning("%s carries no digests, as an earlier release wrote it; it gets them now", self.path)
                watch_rows(database)
                database.execute(f"PRAGMA application_id = {RECORD_APPLICATION}")
                database.execute(f"PRAGMA user_version = {self._version}")
            else:  # nothing is to be written: a full disk is no reason not to go on
                add_functions(database)
        except BaseException as error:
            database.close()
            if isinstance(error, sqlite3.Error) and is_damage(error):
                raise DamagedError(str(error)) from None
            raise
        return database

    def _fall_back(self, reason: str) -> None:
        """Set the file aside, and let the one before it take its place.

        Raises:
            RecordError: that one is missing or damaged.

        """
        previous = previous_of(self.path)
        try:
            with closing(sealed_rows.open_to_read(previous)) as database:
                _checked_version(database, previous, self._version)
        except (sqlite3.Error, DamagedError, RecordError):
            raise RecordError(
                f"{self.path} cannot be used as the coordinator's record, it is damaged or something else: {reason}; "
                f"there is no good {previous.name} beside it: name another file, and begin without --resume"
            ) from None
        aside = damaged_of(self.path)
        for ending in _SIDE_FILES:  # first: they would be taken for those of the other
            side = Path(f"{self.path}{ending}")
            if side.exists():
                side.replace(f"{aside}{ending}")
        self.path.replace(aside)
        previous.replace(self.path)
        log.error(
            "%s is damaged: %s; it is set aside as %s, and %s takes its place: the latest steps may be missing in it",
            self.path,
            reason,
            aside,
            previous,
        )

    def _is_empty(self) -> bool:
        return self.database.execute("SELECT 1 FROM sessions LIMIT 1").fetchone() is None


def open_to_read(path: Path, oldest: int, version: int) -> sqlite3.Connection:
    """Return the database of a record that a coordinator may be writing.

    Raises:
        RecordError: it cannot be read, is damaged, or of another release.

    """
    with _explained(path):
        database = sealed_rows.open_to_read(path)
        try:
            if _checked_version(database, path, version) < oldest:
                raise RecordError(f"{path} was written by an older release, which kept no history")
        except DamagedError as error:
            database.close()
            previous = previous_of(path)
            hint = f"{previous} is the one before it" if previous.exists() else "there is none before it"
            raise RecordError(
                f"{path} cannot be used as the coordinator's record: {_one_line(error)}; {hint}"
            ) from None
        except BaseException:
            database.close()
            raise
    return database


def _checked_version(database: sqlite3.Connection, path: Path, newest: int) -> int:
    """Return the version of a record's format, 0 of an empty file, after checking that it is whole."""
    try:
        version: int = database.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        if is_damage(error):
            raise DamagedError(str(error)) from None
        raise
    if version > newest:
        raise RecordError(f"{path} was written by a newer release, or is damaged; install that one")
    is_sealed = check_rows(database)
    if is_sealed != (version == newest) and version:
        raise DamagedError("its version is not that of its content")
    return version


def _is_of_the_disk(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", None) or ""
        return is_damage(error) or name.startswith(
            ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_BUSY", "SQLITE_LOCKED")
        )
    return isinstance(error, OSError)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, DamagedError) as error:
        cause = _one_line(getattr(error, "strerror", None) or error)
        raise RecordError(f"{path} cannot be used as the coordinator's record: {cause}") from None


def _one_line(error: object) -> str:
    """Return an error's text without its line ends: SQLite quotes what it cannot read."""
    return " ".join(str(error).split())
