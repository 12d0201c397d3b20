"""A session with what surrounds it: its streams, and its chronicle. Carries out what the state machine decides.

Everything runs on one event loop, so there are no locks.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from edgenewton.common.failpoints import failpoint
from edgenewton.common.identity import Identity
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.framing import FramePacker, Layout, SliceWriter, check_values, parse_frame

from coordinator.serving.broadcast import BroadcastLog
from coordinator.serving.snapshots import SnapshotDesk
from coordinator.serving.translation import contribution_from_proto
from coordinator.session import decisions as d
from coordinator.session.members import Joining, Member, Standing
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.session import Session
from coordinator.telemetry.announcement import commit_to_proto
from coordinator.telemetry.chronicle import Chronicle
from coordinator.telemetry.link_use import LinkUse, saved_bytes
from coordinator.telemetry.record import Record

MAX_TOKENS = 10_000
_HEARTBEAT = pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()


@dataclass
class Outbox:
    """What is on its way to one device: frames for it alone, and its position in what all are sent."""

    position: int | None = None
    """None for a device that needs a snapshot first."""
    direct: deque[bytes] = field(default_factory=deque)
    end: tuple[Status, str] | None = None
    """How its stream ends, once it does."""
    stream: object | None = None
    """The stream that reads it; a device that joins again brings a new one."""
    identity: Identity | None = None
    """Whose certificate the device joined with; None in plaintext."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    use: LinkUse = field(default_factory=LinkUse)

    def close(self, status: Status, reason: str) -> None:
        """End the stream."""
        self.end = (status, reason)
        self.wake.set()


class Room:
    """One session and its devices' streams."""

    def __init__(self, session: Session, publish: Callable[[pb.SessionEvent], None], record: Record | None) -> None:
        self.session = session
        self.chronicle = Chronicle(session, publish, record)
        self.outboxes: dict[str, Outbox] = {}
        self.devices_by_token: dict[str, str] = {}
        """Former members are still known, so that they are told how the session ended."""
        self.desk = SnapshotDesk()
        self.log = BroadcastLog(session.settings.replay_bytes, session.step.number)
        self._saved = 0

    @cached_property
    def layout(self) -> Layout:
        """The slices of the session's tensors, once the first device has named them."""
        settings = self.session.settings
        return Layout(self.session.fingerprint, settings.codec_choice.policy(), settings.frame_bytes)

    @cached_property
    def _writer(self) -> SliceWriter:
        return SliceWriter(self.layout)

    # ------------------------------------------------------------------ devices

    def join(self, joining: Joining, now: float) -> Member:
        """Give a device a place, and its outbox.

        Raises:
            RefusedError: the session refuses it.

        """
        is_first = not self.session.fingerprint
        member = self.session.join(joining, now, self.log.oldest_step)
        if is_first:
            self.chronicle.adopt_model()
        before = self.outboxes.get(joining.device)
        outbox = Outbox()
        if before is not None:
            outbox.use = before.use
            before.close(Status.ABORTED, f"device {joining.device!r} has joined again")
        self.outboxes[joining.device] = outbox
        self._remember(member)
        self.carry_out()
        if member.standing is not Standing.HEALING:
            step = self.session.step.number if joining.next_step is None else joining.next_step
            outbox.position = self.log.position_of(step)
        self.find_donor(now)
        return member

    def frames_for(self, outbox: Outbox) -> Iterator[bytes]:
        """Yield what can be sent to a device now.

        Raises:
            RefusedError: it reads so slowly that what it needs is gone.

        """
        while outbox.direct:
            yield outbox.direct.popleft()
        while outbox.position is not None and outbox.end is None:
            try:
                frame = self.log.read(outbox.position)
            except LookupError:
                raise RefusedError(
                    Status.RESOURCE_EXHAUSTED,
                    f"the device reads too slowly: session {self.session.name!r} is at step "
                    f"{self.session.step.number} and keeps steps from {self.log.oldest_step} on; join again",
                ) from None
            if frame is None:
                return
            outbox.position += 1
            outbox.use.saved += frame.saved
            yield frame.data

    def take_frame(self, device: str, data: bytes, now: float) -> None:
        """Take a frame of a member in.

        Raises:
            RefusedError: it breaks the contract; the text names the device, and the tensor if it is about one.

        """
        session = self.session
        if device not in session.members:
            return
        session.members.heard(device, now)
        try:
            frame, slices = parse_frame(data, self.layout)
        except ValueError as error:
            where = f"device {device!r}, step {session.step.number}"
            raise RefusedError(Status.INVALID_ARGUMENT, f"{where}: {error}") from None
        if frame.HasField("heartbeat"):
            self.send(device, _HEARTBEAT)
        outbox = self.outboxes.get(device)
        for piece, payload in slices:
            if outbox is not None:
                outbox.use.saved += saved_bytes(piece, payload)
            if session.wants(device, frame.step, frame.samples, piece.key, now):
                try:
                    values = piece.decode(payload, frame.step)
                    check_values(piece.spec, values)
                except ValueError as error:
                    reason = f"device {device!r}, step {frame.step}: {error}"
                    raise RefusedError(Status.INVALID_ARGUMENT, reason) from None
                session.contribute(device, frame.samples, piece.key, values)
        if frame.HasField("contribution"):
            contribution = contribution_from_proto(frame.samples, frame.contribution)
            session.complete(device, frame.step, contribution, now)
        if slices or frame.HasField("contribution"):
            session.advance(now)
        self.carry_out()

    def remove(self, device: str, reason: str, now: float, status: Status = Status.OK) -> None:
        """Take a device's place away."""
        self.session.remove(device, reason, now, status)
        self.carry_out()

    def abort(self, reason: str) -> None:
        """End the session early and release its devices; nothing happens if it is over."""
        self.session.abort(reason)
        self.carry_out()

    def suspend(self, reason: str) -> None:
        """Close all streams; the session stays as it is recorded."""
        for outbox in self.outboxes.values():
            outbox.close(Status.UNAVAILABLE, reason)
        self.chronicle.close()

    def tick(self, now: float) -> None:
        """Let the session act on its deadlines, and find somebody to heal those in need."""
        self.session.tick(now)
        self.carry_out()
        self.find_donor(now)

    def send(self, device: str, frame: bytes) -> None:
        """Send a frame to one device."""
        outbox = self.outboxes.get(device)
        if outbox is not None:
            outbox.direct.append(frame)
            outbox.wake.set()

    def _remember(self, member: Member) -> None:
        """Let a member's latest token find it; the oldest tokens go once there are too many."""
        known = {token: device for token, device in self.devices_by_token.items() if device != member.device}
        known[member.token] = member.device
        for token in list(known)[: max(0, len(known) - MAX_TOKENS)]:
            if known[token] not in self.session.members:
                del known[token]
        self.devices_by_token = known

    # ------------------------------------------------------------------ healing

    def find_donor(self, now: float) -> None:
        """Ask a live member for its state if somebody needs one and none is under way."""
        in_need = self.session.members.standing(Standing.HEALING)
        if not in_need:
            if not self.session.members.lost:
                self.desk.drop()
            return
        if self.usable_step() is not None or self.desk.is_waiting(now, self.session.settings.lease_s):
            return
        donors = [n for n in self.session.members.standing(Standing.ACTIVE) if self.session.members[n].is_connected]
        last = self.desk.donor
        if donors:
            # One that was asked and did not answer is asked again only if there is no other.
            donor = next((name for name in donors if name != last), donors[0])
            self.desk.ask(donor, now)
            self.send(donor, pb.Frame(snapshot_wanted=pb.SnapshotWanted()).SerializeToString())

    def usable_step(self) -> int | None:
        """Return the step of the snapshot at hand, if the log can carry a device from there to the present."""
        snapshot = self.desk.snapshot
        if snapshot is None or self.log.position_of(snapshot.header.step) is None:
            return None
        return snapshot.header.step

    def healed(self, device: str, step: int) -> None:
        """Let a device that has a snapshot of a step see everything from it on."""
        outbox = self.outboxes[device]
        outbox.position = self.log.position_of(step)
        self.session.healed(device, step)
        outbox.wake.set()

    # ------------------------------------------------------------------ decisions

    def carry_out(self) -> None:
        """Carry out the session's decisions: slices that are ready together leave in common frames."""
        packer: FramePacker | None = None
        for decision in self.session.take_decisions():
            match decision:
                case d.SliceReady(step, key, values):
                    packer = packer or FramePacker(step, 0, self.layout.frame_bytes)
                    piece = self.layout.slice_of(key)
                    check_values(piece.spec, values)
                    data = self._writer.encode(piece, values, step)
                    self._saved += saved_bytes(piece, data)
                    for frame in packer.add(piece, data):
                        self._broadcast(frame)
                case d.StepCommitted():
                    self._commit(packer or FramePacker(decision.step, 0, self.layout.frame_bytes), decision)
                    packer = None
                case d.StepSet(step):
                    self.log.restart(step)
                    self.desk.drop()
                    self.desk.wake()
            # Before a removed device's outbox goes, because the announcement says what went through it.
            self._announce(decision)
            self._tell(decision)
        if packer is not None and not packer.is_empty:
            self._broadcast(packer.take())

    def _commit(self, packer: FramePacker, decision: d.StepCommitted) -> None:
        failpoint("before-commit", decision.step)
        self.chronicle.commit(decision)
        failpoint("after-commit", decision.step)
        self._broadcast(packer.take(pb.Frame(commit=commit_to_proto(decision))))
        self.log.begin_step(decision.step + 1)

    def _broadcast(self, frame: bytes) -> None:
        self.log.append(frame, self._saved)
        self._saved = 0
        for outbox in self.outboxes.values():
            outbox.wake.set()

    def _tell(self, decision: d.Decision) -> None:
        match decision:
            case d.DeviceHealing(device, step, reason, must_be_told=True):
                outbox = self.outboxes.get(device)
                if outbox is not None:
                    # It still gets what was sent before; nothing of it can be used.
                    outbox.position = None
                    self.send(device, pb.Frame(step=step, heal=pb.Heal(reason=reason)).SerializeToString())
            case d.DeviceRemoved(device, status, reason):
                outbox = self.outboxes.pop(device, None)
                if outbox is not None:
                    outbox.close(status, reason)
                if self.desk.donor == device:
                    self.desk.donor = None
            case d.PhaseChanged() if self.session.is_over:
                self.chronicle.close()
                self.desk.wake()

    def _announce(self, decision: d.Decision) -> None:
        outbox = None
        if isinstance(decision, d.DeviceReported | d.DeviceRemoved):
            outbox = self.outboxes.get(decision.device)
        self.chronicle.note(decision, outbox.use if outbox is not None else None)
