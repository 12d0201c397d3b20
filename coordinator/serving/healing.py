"""Brings the state of a live member to those members that need one, while the others go on."""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator

from edgenewton.v1 import exchange_pb2 as pb

from coordinator.serving.outboxes import Outboxes
from coordinator.serving.snapshot_broker import HeldSnapshot, SnapshotBroker, Upload
from coordinator.serving.state_size import largest_state
from coordinator.session.members import Standing
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.session import Session


class Healing:
    """Asks members for snapshots and hands them on.

    Args:
        session: whose members they are.
        outboxes: through which donors are asked, and from whose log a healed device goes on.

    """

    def __init__(self, session: Session, outboxes: Outboxes) -> None:
        self._session = session
        self._outboxes = outboxes
        self._broker = SnapshotBroker()

    def find_donor(self, now: float) -> None:
        """Ask a live member for its state if somebody needs one and none is under way."""
        members = self._session.members
        if not members.standing(Standing.HEALING):
            if not members.lost:
                self._broker.drop()
            return
        is_served = all(self._usable(device) is not None for device in members.standing(Standing.HEALING))
        if is_served or self._broker.is_waiting(now, self._session.settings.lease_s):
            return
        donors = [name for name in members.standing(Standing.ACTIVE) if members[name].is_connected]
        if donors:
            # One that was asked and did not answer is asked again only if there is no other.
            donor = next((name for name in donors if name != self._broker.last), donors[0])
            self._broker.ask(donor, now)
            wanted = pb.SnapshotWanted(readers=self.readers())
            self._outboxes.send(donor, pb.Frame(snapshot_wanted=wanted).SerializeToString())

    def wants_state_of(self, device: str, now: float) -> bool:
        """Ask a member for its state before it goes, if nobody else has it and somebody may need it; return whether."""
        usable = self._usable()
        has_it = usable is not None and usable.header.step == self._session.step.number
        is_wanted = self._session.members.is_last_with_state(device) and not has_it
        if is_wanted:
            self._broker.ask(device, now)
        return is_wanted

    def readers(self) -> list[pb.ChannelKey]:
        """Return with which keys a state is to be sealed: of those who need one; none without secure aggregation."""
        if self._session.masking is None:
            return []
        members = self._session.members
        keys = (members[device].joining.channel_key for device in members.standing(Standing.HEALING))
        return [key for key in keys if key is not None]

    async def donate(self, device: str, chunks: AsyncIterator[pb.SnapshotChunk]) -> int:
        """Take a member's state in; return its size.

        Raises:
            RefusedError: nobody asked for it, it is too large or too slow, or not what its header says.

        """
        settings = self._session.settings
        limit_bytes = min(settings.max_snapshot_bytes, largest_state(self._session.fingerprint))
        deadline_s = max(settings.lease_s, settings.join_deadline_s + settings.rejoin_deadline_s)
        snapshot = await self._broker.take(Upload(device, limit_bytes, settings.lease_s, deadline_s), chunks)
        size = len(snapshot.data)
        outbox = self._outboxes.get(device)
        if outbox is not None:
            outbox.use.received += size
        return size

    async def chunks_for(self, device: str) -> AsyncGenerator[pb.SnapshotChunk, None]:
        """Yield a state for a member, once there is one; a header alone if it needs none any more.

        Raises:
            RefusedError: it is no member any more, or no member handed its state in.

        """
        snapshot = await self._await_snapshot(device)
        if snapshot is None:
            yield pb.SnapshotChunk(header=pb.SnapshotHeader(step=self._session.step.number))
            return
        # From here on the log keeps the device's place; it reads while it loads.
        self._outboxes.place(device, snapshot.header.step)
        self._session.healed(device, snapshot.header.step)
        for chunk in snapshot.chunks():
            outbox = self._outboxes.get(device)
            if outbox is not None:
                outbox.use.sent += len(chunk.data)
            yield chunk
        self.find_donor(time.monotonic())

    def restart(self) -> None:
        """Forget the state at hand, and who was asked for one: the session has another state."""
        self._broker.drop()
        self._broker.ask_nobody()
        self._broker.wake()

    def forget(self, device: str) -> None:
        """Expect nothing of a device that is gone."""
        self._broker.forget(device)

    def end(self) -> None:
        """Let those who wait learn that the session is over."""
        self._broker.wake()

    def _usable(self, device: str | None = None) -> HeldSnapshot | None:
        """Return the snapshot at hand, if the log can carry a device from there to the present, and it can read it."""
        snapshot = self._broker.snapshot
        if snapshot is None or self._outboxes.log.position_of(snapshot.header.step) is None:
            return None
        is_sealed = self._session.masking is not None and device is not None
        return None if is_sealed and all(key.device != device for key in snapshot.header.keys) else snapshot

    async def _await_snapshot(self, device: str) -> HeldSnapshot | None:
        """Return a snapshot that a member can use; None if it needs none any more."""
        session = self._session
        wait_s = session.settings.join_deadline_s + session.settings.rejoin_deadline_s
        deadline = time.monotonic() + wait_s
        while True:
            session.check_member(device)
            if session.members[device].standing is not Standing.HEALING:
                return None
            snapshot = self._usable(device)
            if snapshot is not None:
                return snapshot
            self.find_donor(time.monotonic())
            with contextlib.suppress(TimeoutError):
                await self._broker.wait(min(1.0, session.settings.lease_s))
            if time.monotonic() > deadline:
                raise RefusedError(
                    Status.DEADLINE_EXCEEDED,
                    f"device {device!r} needs the state of session {session.name!r}, but no member handed its own in "
                    f"within {wait_s:g} s",
                )
