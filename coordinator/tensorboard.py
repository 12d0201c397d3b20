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

from coordinator.events import EventLog
from coordinator.statistics import SessionStatistics

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

log = logging.getLogger(__name__)

FLUSH_S = 5
"""Seconds after which what was written can be seen."""
_STOP_DEADLINE_S = 10.0


class TensorBoardError(RuntimeError):
    """No event files can be written; the text says why."""


class TensorBoardWriter:
    """Writes what happens in all sessions into event files. Use it on the event loop of the events.

    It reads the events at its own pace and writes in a thread: a slow disk delays nothing else. Should it fall behind
    the history that is kept, steps are missing in the files.

    Args:
        events: of all sessions.
        folder: gets a folder for each session.

    Raises:
        TensorBoardError: the package is not installed, or the folder cannot be made.

    """

    def __init__(self, events: EventLog, folder: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise TensorBoardError("event files need the package tensorboard: pip install 'edgenewton[tensorboard]'")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TensorBoardError(f"no event files can be written to {folder}: {error.strerror or error}") from None
        self._events = events
        self._folder = folder
        self._sessions: dict[str, SessionStatistics] = {}
        self._writers: dict[str, EventFileWriter] = {}
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
                told = self._sessions.setdefault(event.session, SessionStatistics(event.session))
                told.apply(event)
                if event.WhichOneof("event") == "step":
                    await asyncio.to_thread(self._write, event, told)
                elif told.ended_at is not None:
                    await asyncio.to_thread(self._close, event.session)
        except Exception:  # the exchange shares this loop, and goes on
            log.exception("no more TensorBoard event files are written")
        finally:
            await asyncio.to_thread(self._close_all)

    def _write(self, event: pb.SessionEvent, told: SessionStatistics) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(event.step, told)]
        self._writer(event).add_event(
            Event(wall_time=event.time_s, step=event.step.step, summary=Summary(value=values))
        )

    def _writer(self, event: pb.SessionEvent) -> "EventFileWriter":
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = self._writers.get(event.session)
        if writer is None:
            folder = self._folder / (quote(event.session, safe=" ") if event.session.strip(".") else "session")
            writer = EventFileWriter(str(folder), flush_secs=FLUSH_S)
            # Steps from this one on are new, also where an earlier process got further before it was killed.
            begin = SessionLog(status=SessionLog.START)
            writer.add_event(Event(wall_time=event.time_s, step=event.step.step, session_log=begin))
            self._writers[event.session] = writer
        return writer

    def _close(self, session: str) -> None:
        self._sessions.pop(session, None)
        writer = self._writers.pop(session, None)
        if writer is not None:
            writer.close()

    def _close_all(self) -> None:
        for session in list(self._writers):
            self._close(session)


def _scalars(step: pb.StepCommitted, told: SessionStatistics) -> Iterator[tuple[str, float]]:
    yield "train/loss", step.commit.loss
    yield "step/seconds", step.seconds
    yield "step/samples", step.commit.samples
    yield "step/devices", step.commit.devices
    yield "step/left out", len(step.commit.left_out)
    yield "wire/bytes received", told.received
    yield "wire/bytes sent", told.sent
    yield "wire/bytes saved by the codec", told.saved
    if step.evaluation.samples:
        yield "held out/accuracy", step.evaluation.correct / step.evaluation.samples
        yield "held out/loss", step.evaluation.loss
