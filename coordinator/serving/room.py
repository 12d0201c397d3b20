"""A session with what surrounds it: its devices' outboxes, its downlink, its chronicle. Carries out what it decides.

Everything runs on one event loop, so there are no locks.
"""

import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import NamedTuple

from edgenewton.common.failpoints import failpoint
from edgenewton.common.identity import Identity
from edgenewton.secure_aggregation.modular_integers import Integers
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.framing import SENT_FRAME, Layout, Slice, check_values, parse_frame

from coordinator.serving.combining import Combining, is_large
from coordinator.serving.downlink import Downlink
from coordinator.serving.healing import Healing
from coordinator.serving.masking_mail import MaskingMail
from coordinator.serving.outboxes import Outbox, Outboxes
from coordinator.serving.translation import contribution_from_proto, samples_from_proto
from coordinator.serving.waiting import Waiting
from coordinator.session import decisions as d
from coordinator.session.members import Joining, Member, Standing
from coordinator.session.refusal import RefusedError, Status, invalid
from coordinator.session.robust import StepOutcome
from coordinator.session.session import Session
from coordinator.session.step import Values
from coordinator.telemetry.chronicle import Chronicle
from coordinator.telemetry.link_use import saved_bytes

log = logging.getLogger(__name__)

MAX_TOKENS = 10_000
LARGE_ELEMENTS = 300_000
"""Elements that take about a millisecond to read; a frame of 1 MiB in float32 has fewer."""
SLICE_ELEMENTS = 300
"""So many elements take as long as a slice's header."""
LEAST_SLICE_BYTES = 16
_HEARTBEAT = pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()


class SentFrame(NamedTuple):
    """A frame of a device, checked as far as it can be without the session."""

    message: pb.Frame
    slices: list[tuple[Slice, memoryview, Values | None]]
    """With their data as they came, and decoded; None if they come too late."""
    size: int
    """Bytes of the frame."""


class Room:
    """One session and its devices: they join, attach their streams to it, exchange frames, and leave.

    Args:
        session: the session.
        chronicle: told of everything that the session decides.
        outboxes: of the session's devices.
        downlink: brings means and commits to all devices, through the outboxes.

    """

    def __init__(self, session: Session, chronicle: Chronicle, outboxes: Outboxes, downlink: Downlink) -> None:
        self.session = session
        self.chronicle = chronicle
        self.healing = Healing(session, outboxes)
        self.devices_by_token: dict[str, str] = {}
        """Former members are still known, so that they are told how the session ended."""
        self.waiting = Waiting()
        """Devices that cannot be told yet whether they may join."""
        self._outboxes = outboxes
        self._downlink = downlink
        self._masking_mail = MaskingMail(outboxes)
        self._combining = Combining(self._combined)
        self._closing: d.StepClosing | None = None
        """Whose combination is to begin."""
        self._held_up: set[str] = set()
        """Devices of which a frame waits until a step is combined."""
        self._layout: Layout | None = None
        self._sent_layout: Layout | None = None
        if session.fingerprint:  # it is resumed
            downlink.begin(self.layout)

    @property
    def layout(self) -> Layout:
        """The slices of the session's tensors, once a device has named them."""
        layout = self._layout  # threads read it, too
        if layout is None:
            settings = self.session.settings
            layout = Layout(self.session.fingerprint, settings.codec_choice.policy(), settings.frame_bytes)
            self._layout = layout
        return layout

    @property
    def sent_layout(self) -> Layout:
        """The slices as the devices write them: masked with secure aggregation, else as the means."""
        layout = self._sent_layout
        if layout is None:
            settings = self.session.settings
            layout = self.layout
            if settings.secure_aggregation:
                layout = Layout(self.session.fingerprint, settings.codec_choice.masked_policy(), settings.frame_bytes)
            self._sent_layout = layout
        return layout

    @property
    def kept_bytes(self) -> int:
        """Bytes of frames that are kept for devices that read slowly or come back."""
        return self._outboxes.log.size

    def identities(self) -> dict[str, Identity | None]:
        """Return the members' identities, as they joined with them."""
        return {outbox.device: outbox.identity for outbox in self._outboxes}

    # ------------------------------------------------------------------ membership

    def join(self, joining: Joining, now: float, identity: Identity | None = None) -> Member:
        """Give a device a place, and its outbox.

        Raises:
            UndecidedError: the session cannot say yet; `waiting` tells when to try again.
            RefusedError: the session refuses it.

        """
        try:
            member = self.session.join(joining, now, self._replayable_from(joining.next_step))
        except RefusedError:
            self._carry_out()  # what the device brought may have been news
            raise
        self._outboxes.open(joining.device, identity)
        self._remember(member)
        self._carry_out()
        self.session.check_member(joining.device)  # else it has just failed
        if member.standing is not Standing.HEALING:
            step = self.session.step.number if joining.next_step is None else joining.next_step
            self._outboxes.place(joining.device, step)
        self.healing.find_donor(now)
        return member

    def leave(self, device: str, token: str, now: float, *, finished: bool, reason: str) -> bool:
        """Take the place back of a device that leaves; nothing happens if it has none.

        Returns:
            Whether it is to hand in its state first, and keeps its place until then: it has finished, but somebody may
            need what it alone has.

        Raises:
            RefusedError: the token is not the device's.

        """
        member = self.session.members.get(device)
        if member is None:
            return False
        if member.token != token:
            raise RefusedError(Status.PERMISSION_DENIED, f"the token sent for device {device!r} is not its own")
        if not finished:
            self.remove(device, reason or "it left", now)
            return False
        if self.healing.wants_state_of(device, now):
            return True
        self.session.finish(device, now, reason)
        self._carry_out()
        return False

    def remove(self, device: str, reason: str, now: float, status: Status = Status.OK) -> None:
        """Take a device's place away, once no step is being combined."""

        def act() -> None:
            self.session.remove(device, reason, now, status)
            self._carry_out()

        self._combining.do(act)

    async def settled(self) -> None:
        """Wait until no step is being combined; `join`, `leave` and `take_frame` may be called then."""
        await self._combining.settled()

    # ------------------------------------------------------------------ streams

    def attach(self, device: str, now: float) -> Outbox:
        """Open a member's stream; return what it reads, for `frames_for`, `take_frame` and `detach`.

        Raises:
            RefusedError: it has no place, or a stream already.

        """
        self.session.check_member(device)
        outbox = self._outboxes[device]
        if outbox.is_attached:
            raise RefusedError(Status.ALREADY_EXISTS, f"device {device!r} has a stream already")
        outbox.is_attached = True
        self.session.members.connected(device, now)
        self.healing.find_donor(now)
        return outbox

    def detach(self, outbox: Outbox, now: float) -> None:
        """Note that a stream is over; a device that has not left keeps its place for its lease."""
        if self._outboxes.has(outbox):
            outbox.is_attached = False
            self.session.members.disconnected(outbox.device, now)

    def is_open(self, outbox: Outbox) -> bool:
        """Whether a stream is to go on, as seen from this side."""
        return self._outboxes.has(outbox) and outbox.end is None

    def close(self, outbox: Outbox) -> None:
        """End a stream that its device has closed, or whose connection broke."""
        outbox.close(Status.OK, "the stream was closed by the device")

    async def frames_for(self, outbox: Outbox) -> AsyncGenerator[bytes, None]:
        """Yield what is for a device, until its stream is to end as `outbox.end` says.

        Raises:
            RefusedError: it reads so slowly that what it needs is gone.

        """
        while outbox.end is None:
            outbox.wake.clear()
            try:
                for frame in self._outboxes.waiting(outbox):
                    yield frame
                    failpoint("mid-broadcast", self.session.step.number - 1)
            except LookupError:
                raise RefusedError(
                    Status.RESOURCE_EXHAUSTED,
                    f"the device reads too slowly: session {self.session.name!r} is at step "
                    f"{self.session.step.number} and keeps steps from {self._outboxes.log.oldest_step} on; join again",
                ) from None
            if outbox.end is None:
                await outbox.wake.wait()

    def is_large(self, size: int) -> bool:
        """Whether a frame of so many bytes may take so long to read that others should not wait for it."""
        slices = min(len(self.session.fingerprint), size // LEAST_SLICE_BYTES)
        return size * self.sent_layout.density + slices * SLICE_ELEMENTS > LARGE_ELEMENTS

    def read_frame(self, device: str, data: bytes) -> "SentFrame":
        """Return what a member sent, checked as far as it can be without the session; any thread may call it.

        Raises:
            RefusedError: it breaks the contract; the text names the device, and the tensor if it is about one.

        """
        step = self.session.step.number
        try:
            frame, slices = parse_frame(data, self.sent_layout, SENT_FRAME)
            step = frame.step
            # What comes too late is not looked at. If its step begins only now, `take_frame` decodes it.
            is_timely = step == self.session.step.number and self._is_readable(device, frame)
            decoded = [self._decode(piece, payload, step) if is_timely else None for piece, payload in slices]
        except ValueError as error:
            raise invalid(device, step, str(error)) from None
        except Exception as error:
            log.exception("session %r: a frame of device %r cannot be read", self.session.name, device)
            raise invalid(device, step, f"its frame cannot be read: {error}") from error
        pieces = [(*each, values) for each, values in zip(slices, decoded, strict=True)]
        return SentFrame(frame, pieces, len(data))

    async def take(self, outbox: Outbox, sent: "SentFrame") -> bool:
        """Take a frame of a member in, once no step is being combined: see `take_frame`."""
        if self._combining.is_running and (sent.slices or sent.message.HasField("contribution")):
            self._held_up.add(outbox.device)
            try:
                await self._combining.settled()
            finally:
                self._held_up.discard(outbox.device)
        return self.take_frame(outbox, sent, time.monotonic())

    def take_frame(self, outbox: Outbox, sent: "SentFrame", now: float) -> bool:
        """Take a frame of a member in; return False once its stream counts no more, because it has joined again.

        Raises:
            RefusedError: it breaks the contract; the text names the device, and the tensor if it is about one.

        """
        if not self._outboxes.has(outbox):
            return False
        outbox.use.received += sent.size
        session, device, frame = self.session, outbox.device, sent.message
        session.members.heard(device, now)
        if frame.HasField("heartbeat"):
            self._outboxes.send(device, _HEARTBEAT)
        if frame.HasField("step_keys"):
            session.take_keys(device, frame.step, frame.step_keys, now)
        if frame.HasField("next_keys"):
            session.take_keys_ahead(device, frame.next_step, frame.next_keys)
        if frame.HasField("revealed"):
            session.take_revealed(device, frame.step, frame.revealed, now)
        if frame.samples and session.masking is not None:
            session.begin(device, frame.step, now)
        if self._is_readable(device, frame):
            self._take_contribution(outbox, sent, now)
        self._carry_out()
        return True

    def _take_contribution(self, outbox: Outbox, sent: "SentFrame", now: float) -> None:
        session, device, frame = self.session, outbox.device, sent.message
        samples = samples_from_proto(device, frame)
        for piece, payload, values in sent.slices:
            outbox.use.saved += saved_bytes(piece, payload)
            if session.wants(device, frame.step, samples, piece.key, now):
                if values is None:
                    try:
                        values = self._decode(piece, payload, frame.step)
                    except ValueError as error:
                        raise invalid(device, frame.step, str(error)) from None
                session.contribute(device, samples, piece.key, values)
        if frame.HasField("contribution"):
            contribution = contribution_from_proto(device, frame.step, samples, frame.contribution)
            if session.masking is not None and frame.step == session.step.number:
                contribution = replace(contribution, numbers=self._numbers(device, frame))
            session.complete(device, frame.step, contribution, now)
        if sent.slices or frame.HasField("contribution"):
            session.advance(now)

    # ------------------------------------------------------------------ the session as a whole

    def tick(self, now: float) -> None:
        """Let the session act on its deadlines, and find somebody to heal those in need."""
        if self._combining.is_running:
            return
        try:
            self.session.tick(now)
        except Exception as error:
            self.fail(error)
        self._carry_out()
        self.healing.find_donor(now)

    def fail(self, error: Exception, step: int | None = None) -> None:
        """End the session because the coordinator itself has failed: no device is to blame, and all are told.

        Args:
            error: how it failed.
            step: at which step; None for the one that is on.

        """
        log.error("session %r fails", self.session.name, exc_info=error)
        step = self.session.step.number if step is None else step
        self.session.abort(f"the coordinator failed in step {step}: {error}")
        self._carry_out()

    def abort(self, reason: str) -> None:
        """End the session early and release its devices; nothing happens if it is over."""
        self.session.abort(reason)
        self._carry_out()

    def suspend(self, reason: str) -> None:
        """Close all streams; the session stays as it is recorded."""
        for outbox in self._outboxes:
            self._outboxes.close(outbox.device, Status.UNAVAILABLE, reason)
        self._combining.close()
        self.waiting.wake()
        self.chronicle.close()

    # ------------------------------------------------------------------ inner workings

    def _carry_out(self) -> None:
        """Carry out what the session has decided, in order.

        If that fails, the session ends: no step goes on that was not recorded, and everybody is told.
        """
        failure: Exception | None = None
        step: int | None = None
        for decision in self.session.take_decisions():
            # Before a removed device's outbox goes, because the announcement says what went through it.
            for act in (self._send, self._announce, self._tell):
                if failure is not None and act == self._send:
                    continue
                try:
                    act(decision)
                except Exception as error:
                    if failure is None:
                        failure, step = error, getattr(decision, "step", None)
        try:
            self._downlink.flush()
        except Exception as error:
            failure = failure or error
        if failure is not None and not self.session.is_over:
            self.fail(failure, step)
        elif failure is not None:
            log.error("session %r: its end is not all recorded", self.session.name, exc_info=failure)
        closing, self._closing = self._closing, None
        if closing is not None and not self.session.is_over:
            self._combine(closing)

    def _combine(self, closing: d.StepClosing) -> None:
        if is_large(closing):
            self._combining.begin(closing)
            return
        try:
            outcome = closing.combine()
        except Exception as error:
            self.fail(error)
        else:
            self._combined(outcome)

    def _combined(self, outcome: StepOutcome | Exception) -> None:
        """Commit the step that is closing, or end the session if it could not be combined."""
        now = time.monotonic()
        for device in self._held_up:  # nothing was read from it meanwhile
            self.session.members.heard(device, now)
        if isinstance(outcome, Exception):
            self.fail(outcome)
            return
        try:
            self.session.combined(outcome, now)
        except Exception as error:
            self.fail(error)
        else:
            self._carry_out()

    def _send(self, decision: d.Decision) -> None:
        match decision:
            case d.ModelChanged(device):
                self._layout = self._sent_layout = None
                if device is not None:
                    self._downlink.begin(self.layout)
            case d.SliceReady():
                self._downlink.add(decision)
            case d.StepCommitted(step):
                failpoint("before-commit", step)
                self.chronicle.commit(decision)
                failpoint("after-commit", step)
                self._downlink.commit(decision)
            case d.StepSet(step):
                self._downlink.restart(step)
                self.healing.restart()
            case d.StepClosing():
                self._closing = decision

    def _tell(self, decision: d.Decision) -> None:
        self._masking_mail.send(decision)
        match decision:
            case d.DeviceHealing(device, step, reason, must_be_told=True):
                # It still gets what was sent before; nothing of it can be used.
                self._outboxes.hold(device)
                self._outboxes.send(device, pb.Frame(step=step, heal=pb.Heal(reason=reason)).SerializeToString())
            case d.DeviceRemoved(device, status, reason):
                self._outboxes.close(device, status, reason)
                self.healing.forget(device)
            case d.PhaseChanged() if self.session.is_over:
                self._combining.close()
                self.chronicle.close()
                self.healing.end()
        if isinstance(decision, d.DeviceJoined | d.DeviceRemoved | d.ModelChanged | d.PhaseChanged):
            self.waiting.wake()

    def _announce(self, decision: d.Decision) -> None:
        outbox = None
        if isinstance(decision, d.DeviceReported | d.DeviceRemoved):
            outbox = self._outboxes.get(decision.device)
        self.chronicle.note(decision, outbox.use if outbox is not None else None)

    def _replayable_from(self, next_step: int | None) -> int:
        """Return the first step that a device may begin with which has not applied `next_step`."""
        log = self._outboxes.log
        if next_step is None or log.position_of(next_step) is not None:
            return log.oldest_step
        return self.session.step.number + 1  # a batch in the midst of a step: no frames begin there

    def _remember(self, member: Member) -> None:
        """Let a member's latest token find it; the oldest tokens go once there are too many."""
        known = {token: device for token, device in self.devices_by_token.items() if device != member.device}
        known[member.token] = member.device
        for token in list(known)[: max(0, len(known) - MAX_TOKENS)]:
            if known[token] not in self.session.members:
                del known[token]
        self.devices_by_token = known

    def _is_readable(self, device: str, frame: pb.Frame) -> bool:
        """Whether a contribution can be read: what is masked for a round of keys that was given up is not."""
        masking = self.session.masking
        return masking is None or masking.is_masked_with(device, frame.masked_with)

    def _decode(self, piece: Slice, payload: memoryview, step: int) -> Values:
        """Return a slice's values.

        Raises:
            ValueError: the data are not what the session's codec writes, or a value is out of range.

        """
        if self.session.masking is not None:
            return self.session.masking.read(piece, payload)
        values = piece.decode(payload, step)
        check_values(piece.spec, values)
        return values

    def _numbers(self, device: str, frame: pb.Frame) -> Integers:
        assert self.session.masking is not None
        try:
            return self.session.masking.read_numbers(frame.contribution.numbers)
        except ValueError as error:
            raise invalid(device, frame.step, str(error)) from None
