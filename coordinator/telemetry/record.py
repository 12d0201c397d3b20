"""The record of a coordinator's sessions on disk, from which `edge-coordinator serve --resume` goes on.

It holds what a session is (settings, model, options), who takes part, and the last committed step: never weights,
which live on the devices. SQLite in WAL mode: each change is one transaction, so that a crash at any instant leaves
either the old record or the new one. A killed process loses nothing. A power cut may lose the latest steps; that is
safe, because the devices' own states decide at which step a resumed session goes on. So may a damaged disk: the copy
of a minute ago takes the place of a damaged record.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from edgenewton.common.files import previous_of
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import fingerprint_from_proto, spec_to_proto
from edgenewton.v1.tensor_spec import TensorSpec
from google.protobuf.message import DecodeError

from coordinator.session.decisions import Phase
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.history import SCHEMA as HISTORY_SCHEMA
from coordinator.telemetry.history import History, StepRecord
from coordinator.telemetry.record_file import Key, RecordFile, open_to_read
from coordinator.telemetry.record_file import RecordError as RecordError
from coordinator.telemetry.statistics import SessionStatistics

FORMAT = 3
"""2: without seals. 1: without history."""
_OLDEST_WITH_HISTORY = 2

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

    def told(self, **settings: object) -> Self:
        """Return the same with some settings as an operator gives them now."""
        return replace(self, settings=self.settings.model_copy(update=settings))


class Record:
    """The record in one file. What a full disk refuses is written as soon as that works again; see `trouble`.

    Raises:
        RecordError: the file cannot be opened, is no record, or damaged without a good one before it.

    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._file = None if read_only else RecordFile(path, _SCHEMA + HISTORY_SCHEMA, FORMAT)
        self._database = (
            self._file.database if self._file is not None else open_to_read(path, _OLDEST_WITH_HISTORY, FORMAT)
        )
        self.history = History(self._database)

    @property
    def trouble(self) -> str:
        """Why it cannot be written; empty while it can."""
        return self._file.trouble if self._file is not None else ""

    def _change(self, key: Key, *statements: tuple[str, tuple[object, ...]], step: StepRecord | None = None) -> None:
        """Execute statements in a transaction, and add a step of the session that the key names second."""
        if self._file is None:
            raise RecordError(f"{self.path} is open for reading only")

        def change() -> None:
            for statement, values in statements:
                self._database.execute(statement, values)
            if step is not None:
                self.history.add(str(key[1]), step)

        if not self._file.change(key, change):
            self.history.recount()

    def begin_session(self, name: str, settings: SessionSettings) -> None:
        """Record a new session; an old one of the same name is forgotten."""
        if self._file is not None:
            self._file.drop_waiting(name)
        self._change(
            ("session", name),
            ("DELETE FROM devices WHERE session = ?", (name,)),
            *self.history.forgetting(name),
            (
                "INSERT OR REPLACE INTO sessions (name, settings, phase, updated_s) VALUES (?, ?, ?, ?)",
                (name, settings.model_dump_json(), Phase.GATHERING.value, time.time()),
            ),
        )

    def set_model(self, name: str, fingerprint: tuple[TensorSpec, ...], options: Mapping[str, str]) -> None:
        """Record the model and the options that all devices share."""
        tensors = pb.JoinRequest(tensors=[spec_to_proto(spec) for spec in fingerprint]).SerializeToString()
        self._change(
            ("model", name),
            (
                "UPDATE sessions SET fingerprint = ?, options = ? WHERE name = ?",
                (tensors, json.dumps(dict(options)), name),
            ),
        )

    def set_phase(self, name: str, phase: Phase, reason: str) -> None:
        """Record a session's phase."""
        self._change(
            ("phase", name),
            (
                "UPDATE sessions SET phase = ?, reason = ?, updated_s = ? WHERE name = ?",
                (phase.value, reason, time.time(), name),
            ),
        )
        if self._file is not None and not self.trouble:
            self._file.keep_previous()

    def set_committed(self, name: str, step: StepRecord) -> None:
        """Record that a step is committed, with what people want to know of it."""
        update = "UPDATE sessions SET committed = ?, updated_s = ? WHERE name = ?"
        self._change(("step", name, step.step), (update, (step.step, step.time_s, name)), step=step)

    def set_device(self, session: str, device: str, state: str) -> None:
        """Record where a device stands: "member", "lost" or "finished"."""
        values = (session, device, state)
        self._change(("device", session, device), ("INSERT OR REPLACE INTO devices VALUES (?, ?, ?)", values))

    def set_statistics(self, statistics: SessionStatistics) -> None:
        """Record a session's statistics."""
        self._change(("statistics", statistics.name), self.history.storing(statistics))
        if self._file is not None:
            self._file.keep_previous_now_and_then()

    def statistics(self, name: str) -> SessionStatistics:
        """Return a session's statistics as they were recorded last; empty ones for a new session.

        Raises:
            RecordError: they cannot be read.

        """
        with self._readable():
            return self.history.statistics(name)

    def steps(self, name: str) -> list[StepRecord]:
        """Return the steps that are kept of a session, in order.

        Raises:
            RecordError: they cannot be read.

        """
        with self._readable():
            return self.history.steps(name)

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
        with self._readable():
            rows = self._database.execute(
                "SELECT name, settings, phase, reason, committed, fingerprint, options FROM sessions ORDER BY rowid"
            ).fetchall()
            return [self._session(*row) for row in rows]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        else:
            self._database.close()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Say which file it was if something cannot be read."""
        try:
            yield
        except (ValueError, TypeError, DecodeError, sqlite3.Error) as error:
            previous = previous_of(self.path)
            hint = f"; the one before it is {previous}" if previous.exists() else ""
            raise RecordError(f"{self.path} is damaged: {error}{hint}") from None

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
