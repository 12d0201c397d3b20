"""TensorBoard event files of the sessions, one folder for each; needs the extra `tensorboard`."""

import asyncio
import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import form_from_proto
from edgenewton.v1.forms import Form

from coordinator.telemetry.events import EventLog
from coordinator.telemetry.statistics import SessionStatistics

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

log = logging.getLogger(__name__)

FLUSH_S = 5
"""Seconds after which what was written can be seen."""
_STOP_DEADLINE_S = 10.0


class TensorBoardError(RuntimeError):
    """No event files can be written; the text says why."""


class EventFiles:
    """TensorBoard's files of one run.

    Args:
        folder: gets the files.

    Raises:
        TensorBoardError: the package is not installed, or the folder cannot be made.

    """

    def __init__(self, folder: Path) -> None:
        check_installed()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TensorBoardError(f"no event files can be written to {folder}: {error.strerror or error}") from None
        self._folder = folder
        self._writer: EventFileWriter | None = None

    def write(self, event: pb.SessionEvent, statistics: SessionStatistics) -> None:
        """Write a committed step; `statistics` has taken it in."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(event.step, statistics)]
        self._open(event).add_event(Event(wall_time=event.time_s, step=event.step.step, summary=Summary(value=values)))

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, event: pb.SessionEvent) -> "EventFileWriter":
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is None:
            self._writer = EventFileWriter(str(self._folder), flush_secs=FLUSH_S)
            # Steps from this one on are new, also where an earlier process got further before it was killed.
            begin = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=event.time_s, step=event.step.step, session_log=begin))
        return self._writer


class TensorBoardWriter:
    """Writes what happens in all sessions of a coordinator. Use it on the event loop of the events.

    It reads the events at its own pace and writes in a thread: a slow disk delays nothing else. Should it fall behind
    the history that is kept, steps are missing in the files.

    Args:
        events: of all sessions.
        folder: gets a folder for each session.

    Raises:
        TensorBoardError: the package is not installed.

    """

    def __init__(self, events: EventLog, folder: Path) -> None:
        check_installed()
        self._events = events
        self._folder = folder
        self._sessions: dict[str, tuple[SessionStatistics, EventFiles]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow the events."""
        self._task = asyncio.create_task(self._follow(), name="TensorBoard")

    async def stop(self) -> None:
        """Write what is left of the events, which have been closed, and close the files."""
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task, _STOP_DEADLINE_S)

    async def _follow(self) -> None:
        try:
            async for event in self._events.follow():
                name = event.session
                if name not in self._sessions:
                    files = await asyncio.to_thread(EventFiles, self._folder / _folder_name(name))
                    self._sessions[name] = SessionStatistics(name), files
                statistics, files = self._sessions[name]
                statistics.apply(event)
                if event.WhichOneof("event") == "step":
                    await asyncio.to_thread(files.write, event, statistics)
                elif statistics.ended_at is not None:
                    del self._sessions[name]
                    await asyncio.to_thread(files.close)
        except OSError as error:
            log.error("no more event files are written to %s: %s", self._folder, error.strerror or error)
        except Exception:  # the exchange shares this loop, and goes on
            log.exception("no more TensorBoard event files are written")
        finally:
            for _, files in self._sessions.values():
                with contextlib.suppress(OSError):  # the same that was said
                    await asyncio.to_thread(files.close)


def check_installed() -> None:
    """Check that TensorBoard's package is there.

    Raises:
        TensorBoardError: it is not.

    """
    if importlib.util.find_spec("tensorboard") is None:
        raise TensorBoardError("event files need the package tensorboard: pip install 'edgenewton[tensorboard]'")


def _folder_name(session: str) -> str:
    return quote(session, safe=" ") if session.strip(".") else "session"


def _scalars(step: pb.StepCommitted, statistics: SessionStatistics) -> Iterator[tuple[str, float]]:
    yield "train/loss", step.commit.loss
    yield "step/seconds", step.seconds
    yield "step/samples", step.commit.samples
    yield "step/devices", step.commit.devices
    yield "step/batches", step.commit.batches or 1
    form = form_from_proto(step.commit.cadence.form)
    if form is not None:
        yield f"step/moves in {Form.SPARSE1}", form is Form.SPARSE1
    yield "step/left out", len(step.commit.left_out)
    yield "wire/bytes received", statistics.received
    yield "wire/bytes sent", statistics.sent
    yield "wire/bytes saved by the codec", statistics.saved
    if statistics.epsilon is not None:
        yield "privacy/epsilon", statistics.epsilon
    if step.evaluation.samples:
        yield "held out/accuracy", step.evaluation.correct / step.evaluation.samples
        yield "held out/loss", step.evaluation.loss
