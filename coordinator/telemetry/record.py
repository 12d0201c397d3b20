"""The record of a coordinator's sessions on disk, from which `edge-coordinator serve --resume` goes on.

It holds what a session is (settings, model, options), who takes part, and the last committed step: never weights,
which live on the devices. SQLite in WAL mode: each change is one transaction, so that a crash at any instant leaves
either the old record or the new one. A killed process loses nothing. A power cut may lose the latest steps; that is
safe, because the devices' own states decide at which step a resumed session goes on.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import fingerprint_from_proto, spec_to_proto
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.decisions import Phase
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.history import SCHEMA as HISTORY_SCHEMA
from coordinator.telemetry.history import History, StepRecord
from coordinator.telemetry.statistics import SessionStatistics

FORMAT = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    name TEXT PRIMARY KEY,
    settings TEXT NOT NULL,
    phase TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    committed INTEGER,           -- the last committed step
    fingerprint BLOB,            -- a JoinRequest with the tensors alone
    options TEXT NOT NULL DEFAULT '{}',
    updated_s REAL NOT NULL      -- seconds since the Unix epoch
);
CREATE TABLE IF NOT EXISTS devices (
    session TEXT NOT NULL,
    device TEXT NOT NULL,
    state TEXT NOT NULL,         -- member, lost, finished
    PRIMARY KEY (session, device)
);
"""


class RecordError(RuntimeError):
    """The record cannot be used; the text names the file and says why."""


@dataclass(frozen=True)
class SessionRecord:
    """What is recorded of a session."""

    name: str
    settings: SessionSettings
    phase: Phase
    reason: str
    committed: int | None
    fingerprint: tuple[TensorSpec, ...]
    options: Mapping[str, str]
    devices: list[str]
    """Those that have not finished."""


class Record:
    """The record in one file.

    Raises:
        RecordError: the file cannot be opened or is no record.

    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        try:
            if read_only:
                self._open_to_read()
            else:
                self._open()
        except (OSError, sqlite3.Error) as error:
            raise RecordError(f"{path} cannot be used as the coordinator's record: {error}") from None
        self.history = History(self._database)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._check_version()
        self._database.executescript(_SCHEMA + HISTORY_SCHEMA)
        self._database.execute(f"PRAGMA user_version = {FORMAT}")

    def _open_to_read(self) -> None:
        # A coordinator may be writing it.
        self._database = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
        if self._check_version() < FORMAT:
            raise RecordError(f"{self.path} was written by an older release, which kept no history")

    def _check_version(self) -> int:
        version: int = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise RecordError(f"{self.path} was written by a newer release; install that one")
        return version

    def begin_session(self, name: str, settings: SessionSettings) -> None:
        """Record a new session; an old one of the same name is forgotten.

        Raises:
            RecordError: it cannot be written.

        """
        with self._writing(), self._database:
            self._database.execute("BEGIN")
            self._database.execute("DELETE FROM devices WHERE session = ?", (name,))
            self.history.forget(name)
            self._database.execute(
                "INSERT OR REPLACE INTO sessions (name, settings, phase, updated_s) VALUES (?, ?, ?, ?)",
                (name, settings.model_dump_json(), Phase.GATHERING.value, time.time()),
            )

    def set_model(self, name: str, fingerprint: tuple[TensorSpec, ...], options: Mapping[str, str]) -> None:
        """Record the model and the options that all devices share."""
        tensors = pb.JoinRequest(tensors=[spec_to_proto(spec) for spec in fingerprint]).SerializeToString()
        with self._writing():
            self._database.execute(
                "UPDATE sessions SET fingerprint = ?, options = ? WHERE name = ?",
                (tensors, json.dumps(dict(options)), name),
            )

    def set_phase(self, name: str, phase: Phase, reason: str) -> None:
        """Record a session's phase."""
        with self._writing():
            self._database.execute(
                "UPDATE sessions SET phase = ?, reason = ?, updated_s = ? WHERE name = ?",
                (phase.value, reason, time.time(), name),
            )

    def set_committed(self, name: str, step: StepRecord) -> None:
        """Record that a step is committed, with what people want to know of it.

        Raises:
            RecordError: it cannot be written; the record is as it was.

        """
        with self._writing(), self._database:
            self._database.execute("BEGIN")
            self._database.execute(
                "UPDATE sessions SET committed = ?, updated_s = ? WHERE name = ?", (step.step, step.time_s, name)
            )
            self.history.add(name, step)

    def set_device(self, session: str, device: str, state: str) -> None:
        """Record where a device stands: "member", "lost" or "finished"."""
        with self._writing():
            self._database.execute("INSERT OR REPLACE INTO devices VALUES (?, ?, ?)", (session, device, state))

    def set_statistics(self, statistics: SessionStatistics) -> None:
        """Record a session's statistics."""
        with self._writing():
            self.history.set_statistics(statistics)

    def statistics(self, name: str) -> SessionStatistics:
        """Return a session's statistics as they were recorded last; empty ones for a new session.

        Raises:
            RecordError: they cannot be read.

        """
        try:
            return self.history.statistics(name)
        except (ValueError, sqlite3.Error) as error:
            raise RecordError(f"{self.path} is damaged: {error}") from None

    def resumable(self) -> list[SessionRecord]:
        """Return the sessions that have not ended, but for those that ended with the run that had opened them.

        Raises:
            RecordError: an entry cannot be read.

        """
        return [
            session
            for session in self.sessions()
            if session.phase is not Phase.ENDED
            and (session.phase is not Phase.ABORTED or session.settings.owner_lease_s is None)
        ]

    def sessions(self) -> list[SessionRecord]:
        """Return all sessions, the oldest first.

        Raises:
            RecordError: an entry cannot be read.

        """
        try:
            rows = self._database.execute(
                "SELECT name, settings, phase, reason, committed, fingerprint, options FROM sessions ORDER BY rowid"
            ).fetchall()
            return [self._session(*row) for row in rows]
        except (ValueError, sqlite3.Error) as error:
            raise RecordError(f"{self.path} is damaged: {error}") from None

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise RecordError(f"the record {self.path.name} cannot be written: {error}") from error

    def _session(
        self,
        name: str,
        settings: str,
        phase: str,
        reason: str,
        committed: int | None,
        tensors: bytes | None,
        options: str,
    ) -> SessionRecord:
        devices = self._database.execute(
            "SELECT device FROM devices WHERE session = ? AND state != 'finished' ORDER BY device", (name,)
        )
        return SessionRecord(
            name=name,
            settings=SessionSettings.model_validate_json(settings),
            phase=Phase(phase),
            reason=reason,
            committed=committed,
            fingerprint=fingerprint_from_proto(pb.JoinRequest.FromString(tensors).tensors) if tensors else (),
            options=json.loads(options),
            devices=[device for (device,) in devices],
        )
