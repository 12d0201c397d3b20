"""What is told and remembered of a session: its events, its statistics, the log, and the record on disk."""

import logging
import time
from collections.abc import Callable

from edgenewton.v1 import exchange_pb2 as pb

from coordinator.session import decisions as d
from coordinator.session.refusal import Status
from coordinator.session.session import Session
from coordinator.telemetry.announcement import event_for, step_to_proto
from coordinator.telemetry.events import EventLog
from coordinator.telemetry.history import StepRecord
from coordinator.telemetry.link_use import LinkUse
from coordinator.telemetry.record import Record
from coordinator.telemetry.statistics import SessionStatistics

log = logging.getLogger(__name__)

SAVE_EVERY_S = 5.0
"""Seconds between two times that the statistics are recorded."""
TELL_EVERY_S = 60.0
"""Seconds between two lines of the log that say how far the run is."""


class Chronicle:
    """Takes note of what a session decides.

    Args:
        session: the session.
        publish: given each event too.
        record: where the session is recorded; None for nowhere.

    """

    def __init__(self, session: Session, publish: Callable[[pb.SessionEvent], None], record: Record | None) -> None:
        self.events = EventLog()
        self._session = session
        self._publish = publish
        self._record = record
        self._saved_at = 0.0
        self._trouble = ""
        self._told_at: float | None = None
        self.statistics = record.statistics(session.name) if record is not None else SessionStatistics(session.name)

    def commit(self, decision: d.StepCommitted) -> None:
        """Record a step, before anybody is told of it."""
        if self._record is not None:
            step = StepRecord.of(step_to_proto(decision), time.time(), self.statistics)
            self._record.set_committed(self._session.name, step)
            self._show_trouble(step.time_s)

    def note(self, decision: d.Decision, use: LinkUse | None) -> None:
        """Tell everybody who watches of a decision; `use` is that of the link to the device that it is about."""
        event = event_for(self._session, decision, use)
        if event is not None:
            self._tell(event)
        self._write_down(decision)

    def open(self, reason: str) -> None:
        """Tell that the session waits for its devices."""
        self.note(d.PhaseChanged(d.Phase.GATHERING, reason), None)

    def close(self) -> None:
        """Let those who watch end, and record the statistics."""
        self.events.close()
        self._save(force=True)

    def _tell(self, event: pb.SessionEvent) -> None:
        self.events.append(event)
        self._publish(event)
        try:
            self.statistics.apply(event)
            self._save(event.time_s)
            self._log_progress(event)
        except Exception:  # who trains does not suffer from who watches
            log.exception("session %r: its statistics are wrong from now on", self._session.name)

    def _log_progress(self, event: pb.SessionEvent) -> None:
        if event.WhichOneof("event") != "step":
            return
        if self._told_at is None:
            self._told_at = event.time_s
        elif event.time_s >= self._told_at + TELL_EVERY_S:
            self._told_at = event.time_s
            log.info("session %r: %s", self._session.name, self.statistics.progress(event.time_s))

    def _save(self, now: float = 0.0, *, force: bool = False) -> None:
        if self._record is not None and (force or not self._saved_at <= now < self._saved_at + SAVE_EVERY_S):
            self._saved_at = now
            self._record.set_statistics(self.statistics)

    def _show_trouble(self, now: float) -> None:
        """Show on the page that the record cannot be written, or can again."""
        assert self._record is not None
        before, self._trouble = self._trouble, self._record.trouble
        if self._trouble != before:
            cause = f"cannot be written: {self._trouble}" if self._trouble else "is written again"
            self.statistics.note(now, f"the record {self._record.path} {cause}")

    def _write_down(self, decision: d.Decision) -> None:
        name, record = self._session.name, self._record
        match decision:
            case d.ModelChanged(device):
                admission = self._session.admission
                if device is None:
                    log.info("session %r: no model any more: nobody is left who brought it", name)
                else:
                    log.info("session %r: the model of device %r, fingerprint %s", name, device, admission.model)
                if record is not None:
                    record.set_model(name, admission.fingerprint, admission.options)
            case d.DeviceJoined(member):
                log.info("session %r: device %r joined", name, member.device)
                if record is not None:
                    record.set_device(name, member.device, "member")
            case d.DeviceRemoved(device, status, reason):
                level = logging.INFO if status is Status.OK else logging.WARNING
                log.log(level, "session %r: device %r left: %s", name, device, reason)
                if record is not None:
                    record.set_device(name, device, "finished" if reason == "finished" else "lost")
            case d.DeviceHealing(device, step, reason):
                log.warning("session %r, step %d: device %r heals: %s", name, step, device, reason)
            case d.StepCommitted(step, alignment=reason) if reason:
                log.info("session %r, step %d: %s", name, step, reason)
            case d.DeviceRecovered(device, step):
                log.info("session %r: device %r takes part again from step %d on", name, device, step)
            case d.DeviceUnlike(device, step, reason, times):
                log.warning("session %r, step %d: device %r, for the %d. time: %s", name, step, device, times, reason)
            case d.PhaseChanged(phase, reason):
                log.info("session %r: %s: %s", name, phase.value, reason)
                if record is not None:
                    record.set_phase(name, phase, reason)
