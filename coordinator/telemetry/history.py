"""What a record keeps for people: a session's steps, and its statistics. Both stay small however long it runs."""

import sqlite3
from dataclasses import dataclass
from typing import Self

from edgenewton.v1 import exchange_pb2 as pb

from coordinator.telemetry.statistics import SessionStatistics
from coordinator.telemetry.stored import dump_statistics, load_statistics

MAX_STEPS = 10_000
"""So many steps of a session are kept; then every second one goes, so that the oldest are known most coarsely."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS steps (
    session TEXT NOT NULL,
    step INTEGER NOT NULL,
    time_s REAL NOT NULL,        -- of the commit, seconds since the Unix epoch
    seconds REAL NOT NULL,       -- from the first frame to the commit
    samples INTEGER NOT NULL,
    devices INTEGER NOT NULL,    -- that contributed
    left_out INTEGER NOT NULL,   -- devices that were not in time
    loss REAL,
    correct INTEGER,             -- held-out samples recognised, if the model was tried
    tried INTEGER,
    received INTEGER NOT NULL,   -- bytes from all devices until then
    sent INTEGER NOT NULL,
    saved INTEGER NOT NULL,      -- by the codec, against float32
    PRIMARY KEY (session, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS statistics (
    session TEXT PRIMARY KEY,
    content TEXT NOT NULL        -- of the devices, and of what happened, as JSON
);
"""

# Steps at which the model was tried are thinned on their own: they are few, and every second step may be one.
_THIN = """
DELETE FROM steps WHERE session = :session AND step IN (
    SELECT step FROM (
        SELECT step, ROW_NUMBER() OVER (PARTITION BY tried IS NULL ORDER BY step) AS number
        FROM steps WHERE session = :session
    ) WHERE number % 2 = 0
)
"""


@dataclass(frozen=True)
class StepRecord:
    """What is recorded of a committed step."""

    step: int
    time_s: float
    seconds: float
    samples: int
    devices: int
    left_out: int
    loss: float | None
    correct: int | None
    tried: int | None
    received: int
    sent: int
    saved: int

    @classmethod
    def of(cls, step: pb.StepCommitted, time_s: float, statistics: SessionStatistics) -> Self:
        """Return what is recorded of a step that is committed at a time; the statistics know the bytes until then."""
        is_tried = step.evaluation.samples > 0
        return cls(
            step=step.step,
            time_s=time_s,
            seconds=step.seconds,
            samples=step.commit.samples,
            devices=step.commit.devices,
            left_out=len(step.commit.left_out),
            loss=step.commit.loss,
            correct=step.evaluation.correct if is_tried else None,
            tried=step.evaluation.samples if is_tried else None,
            received=statistics.received,
            sent=statistics.sent,
            saved=statistics.saved,
        )

    @property
    def accuracy(self) -> float | None:
        """Part of the held-out samples that the model recognised before the step, if it was tried."""
        return None if not self.tried or self.correct is None else self.correct / self.tried


_COLUMNS = ", ".join(StepRecord.__dataclass_fields__)
_INSERT = f"INSERT OR REPLACE INTO steps (session, {_COLUMNS}) VALUES (?{', ?' * len(StepRecord.__dataclass_fields__)})"


class History:
    """The steps and statistics of the sessions in a database; who calls it holds the transaction."""

    def __init__(self, database: sqlite3.Connection, max_steps: int = MAX_STEPS) -> None:
        self._database = database
        self._max_steps = max_steps
        self._counts: dict[str, int] = {}

    def forgetting(self, session: str) -> list[tuple[str, tuple[object, ...]]]:
        """Return the statements that forget a session."""
        self._counts.pop(session, None)
        return [(f"DELETE FROM {table} WHERE session = ?", (session,)) for table in ("steps", "statistics")]

    def recount(self) -> None:
        """Count the steps anew, because a transaction was rolled back."""
        self._counts.clear()

    def add(self, session: str, step: StepRecord) -> None:
        """Add a step, in place of an earlier one of the same number."""
        if session not in self._counts:
            (self._counts[session],) = self._database.execute(
                "SELECT COUNT(*) FROM steps WHERE session = ?", (session,)
            ).fetchone()
        self._database.execute(_INSERT, (session, *(getattr(step, name) for name in step.__dataclass_fields__)))
        self._counts[session] += 1
        if self._counts[session] > self._max_steps:
            self._database.execute(_THIN, {"session": session})
            del self._counts[session]

    def steps(self, session: str) -> list[StepRecord]:
        """Return the steps that are kept, in order."""
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM steps WHERE session = ? ORDER BY step", (session,))
        return [StepRecord(*row) for row in rows]

    def storing(self, statistics: SessionStatistics) -> tuple[str, tuple[object, ...]]:
        """Return the statement that records where a session stands."""
        return "INSERT OR REPLACE INTO statistics VALUES (?, ?)", (statistics.name, dump_statistics(statistics))

    def statistics(self, session: str) -> SessionStatistics:
        """Return a session's statistics as they were recorded last, with the curves of its steps.

        Raises:
            ValueError: what is recorded cannot be read.

        """
        row = self._database.execute("SELECT content FROM statistics WHERE session = ?", (session,)).fetchone()
        found = SessionStatistics(session) if row is None else load_statistics(session, row[0])
        before = None
        for step in self.steps(session):
            found.try_model(step.step, step.accuracy)
            found.pace.add(step.step - (step.step if before is None else before), step.time_s)
            before = step.step
            found.curves.add(step.step, step.loss, step.accuracy, step.seconds, step.received + step.sent, step.saved)
        return found
