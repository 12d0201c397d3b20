"""The sessions of one coordinator, each with its room: opened, found, watched over and ended here alone.

Everything runs on one event loop, so there are no locks.
"""

import logging

from edgenewton.v1 import exchange_pb2 as pb

from coordinator.identity.gate import AccessGate
from coordinator.serving.broadcast import BroadcastLog
from coordinator.serving.downlink import Broadcast
from coordinator.serving.outboxes import Outboxes
from coordinator.serving.room import Room
from coordinator.session.admission import Admission
from coordinator.session.decisions import Phase
from coordinator.session.refusal import RefusalLog, RefusedError, Status
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.chronicle import Chronicle
from coordinator.telemetry.events import EventLog
from coordinator.telemetry.record import Record, SessionRecord

log = logging.getLogger(__name__)

MAX_FINISHED = 16
"""So many sessions that are over are remembered, so that a late device is told how its session ended."""


class Directory:
    """Owns the sessions of one coordinator.

    Args:
        record: where the sessions are recorded, so that another process can resume them; None for nowhere.
        gate: who may do what; everybody may do everything unless given.

    """

    def __init__(self, record: Record | None = None, gate: AccessGate | None = None) -> None:
        self.gate = gate or AccessGate()
        self.events = EventLog()
        """What happens in all sessions."""
        self.refusals = RefusalLog()
        self.is_suspended = False
        self._record = record
        self._rooms: dict[str, Room] = {}

    @property
    def rooms(self) -> list[Room]:
        """The sessions that are known, the oldest first."""
        return list(self._rooms.values())

    # ------------------------------------------------------------------ opening and finding

    def create(self, name: str, settings: SessionSettings) -> Session:
        """Create a session that devices can join; one of the same name that is over is replaced.

        Raises:
            ValueError: the name is empty, or has characters that cannot be printed.
            RefusedError: a session of this name is running, or nobody can show that he may join.

        """
        self._check(name, settings)
        if self._record is not None:
            self._record.begin_session(name, settings)
        session = Session(name, settings)
        how = " that mask what they send" if settings.secure_aggregation else ""
        self._open(session, f"waiting for {settings.devices} devices{how}")
        return session

    def resume(self, record: SessionRecord) -> Session:
        """Go on with a recorded session: its devices gather again, and their own states decide at which step.

        Raises:
            ValueError: the name is empty, or has characters that cannot be printed.
            RefusedError: a session of this name is running, or nobody can show that he may join.

        """
        self._check(record.name, record.settings)
        session = Session(record.name, record.settings)
        step = record.settings.first_step if record.committed is None else record.committed + 1
        if record.fingerprint:
            admission = Admission(record.name, record.settings)
            # Before the session has begun its model is not certain: the devices bring it anew.
            if record.committed is not None or record.phase is Phase.TRAINING:
                admission.fingerprint, admission.options = record.fingerprint, record.options
                admission.is_recorded = True
            session.restore(admission, step, record.devices)
        who = ", ".join(record.devices) or "its devices"
        self._open(session, f"resumed at step {step}; waiting for {who}")
        return session

    def get(self, name: str) -> Room | None:
        """Return the room of a session, or None if there is none of this name."""
        return self._rooms.get(name)

    def find(self, name: str) -> Room:
        """Return the room of a session.

        Raises:
            RefusedError: there is none of this name; the text lists those that there are.

        """
        room = self._rooms.get(name)
        if room is None:
            running = ", ".join(repr(r.session.name) for r in self.rooms if not r.session.is_over) or "none"
            raise RefusedError(
                Status.NOT_FOUND, f"session {name!r} does not exist; sessions on this coordinator: {running}"
            )
        return room

    def find_by_token(self, token: str) -> tuple[Room, str] | None:
        """Return the device that was given a token, and its room; None if nobody was."""
        for room in self._rooms.values():
            device = room.devices_by_token.get(token)
            if device is not None:
                return room, device
        return None

    def check_open(self) -> None:
        """Check that the sessions are not suspended.

        Raises:
            RefusedError: they are.

        """
        if self.is_suspended:
            raise RefusedError(Status.UNAVAILABLE, "the coordinator is shutting down; try again when it is back")

    # ------------------------------------------------------------------ watching over

    def tick(self, now: float) -> None:
        """Let the sessions act on their deadlines."""
        for room in [] if self.is_suspended else self.rooms:
            try:
                room.tick(now)
            except Exception:  # the other sessions go on
                log.exception("session %r: its deadlines could not be watched", room.session.name)

    def expel_revoked(self, now: float) -> None:
        """Take the places of devices away whose certificates were revoked."""
        for room in self.rooms:
            for device, identity in room.identities().items():
                reason = self.gate.revocation(identity)
                if reason:
                    self.gate.audit.revoked(room.session.name, device, identity)
                    room.remove(device, reason, now, Status.UNAUTHENTICATED)

    def note_refusal(self, error: RefusedError, session: str, device: str, time_s: float) -> None:
        """Count a refused request; session and device are what the caller said, the time since the Unix epoch."""
        self.refusals.add(error, session, device, time_s)
        room = self._rooms.get(session)
        if room is not None:
            room.chronicle.statistics.refuse(device, error.status.name, error.reason, time_s)

    # ------------------------------------------------------------------ ending

    def abort(self, name: str, reason: str) -> None:
        """End a session early and release its devices; nothing happens if it is over or does not exist."""
        room = self._rooms.get(name)
        if room is not None:
            room.abort(reason)

    def abort_all(self, reason: str) -> None:
        """End all sessions early and release their devices."""
        for room in self.rooms:
            room.abort(reason)
        self.events.close()

    def suspend(self, reason: str) -> None:
        """Close all streams and leave the sessions as they are recorded: devices wait for the coordinator's return."""
        self.is_suspended = True
        for room in self.rooms:
            room.suspend(reason)
        self.events.close()

    # ------------------------------------------------------------------ inner workings

    def _check(self, name: str, settings: SessionSettings) -> None:
        """Check that a session can be opened."""
        self.gate.check_session(settings)
        if not name or not name.isprintable():
            raise ValueError(f"a session needs a name of printable characters, not {name!r}")
        existing = self._rooms.get(name)
        if existing is not None and not existing.session.is_over:
            raise RefusedError(Status.ALREADY_EXISTS, f"session {name!r} is running already")

    def _open(self, session: Session, reason: str) -> None:
        self._rooms.pop(session.name, None)
        finished = [room.session.name for room in self.rooms if room.session.is_over]
        for name in finished[: max(0, len(finished) - MAX_FINISHED + 1)]:
            del self._rooms[name]
        outboxes = Outboxes(BroadcastLog(session.settings.replay_bytes, session.step.number))
        room = self._rooms[session.name] = Room(
            session,
            Chronicle(session, self._publish, self._record),
            outboxes,
            Broadcast(outboxes),
        )
        room.chronicle.open(reason)

    def _publish(self, event: pb.SessionEvent) -> None:
        self.events.append(event)
        self.gate.audit.apply(event)
