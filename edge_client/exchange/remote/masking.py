"""What a device says and hears of its masks: the thread of its stream answers, whatever the device does meanwhile."""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edgenewton.common.tls import TlsMaterial
from edgenewton.secure_aggregation.channel_keys import ChannelKeyCheck, signed_channel_key
from edgenewton.secure_aggregation.contribution_form import ContributionForm, digest_of_terms, scales_by_slice
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.graph import Graph
from edgenewton.secure_aggregation.key_agreement import public_key
from edgenewton.secure_aggregation.messages import (
    announcements_from_bytes,
    revealed_to_proto,
    set_from_bytes,
    step_keys_to_proto,
)
from edgenewton.secure_aggregation.sealed_state import open_state, seal_state
from edgenewton.secure_aggregation.shamir import random_secret
from edgenewton.secure_aggregation.step_keys import channel_secret
from edgenewton.secure_aggregation.step_masks import StepMasks
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.framing import Layout

from edge_client.exchange.remote.masked_once import MaskedOnce

_KEPT_ROUNDS = 4
"""Rounds of keys that may still be asked about."""


class Channels:
    """A device's key for a session, and what it has in common with the others.

    Args:
        session: its name.
        device: this one's name.
        check: raises `SecureAggregationError` if a key is not vouched for by the certificate of its device.

    """

    def __init__(self, session: str, device: str, check: Callable[[str, pb.ChannelKey], None] | None = None) -> None:
        self.session, self.device = session, device
        self._private = random_secret()
        self.key = pb.ChannelKey(device=device, public=public_key(self._private))
        """The public one, with a signature if there is a certificate."""
        self._check = check
        self._secrets: dict[str, tuple[bytes, bytes]] = {}
        """For each other device its public key, and the secret in common."""

    def vouch_with(self, material: TlsMaterial) -> None:
        """Let a certificate vouch for this device's key, and take others' from its authorities on.

        Raises:
            TlsError: keys of this kind cannot sign here.

        """
        self.key = signed_channel_key(material, self.session, self.key)
        self._check = ChannelKeyCheck(material)

    def learn(self, key: pb.ChannelKey) -> None:
        """Take another device's key.

        Raises:
            SecureAggregationError: nobody vouches for it, or it is none.

        """
        known = self._secrets.get(key.device)
        if key.device == self.device or (known is not None and known[0] == key.public):
            return
        if self._check is not None:
            self._check(self.session, key)
        self._secrets[key.device] = key.public, channel_secret(self._private, self.device, key.device, key.public)

    def secret(self, device: str) -> bytes:
        """Return the secret in common with another device.

        Raises:
            SecureAggregationError: the coordinator has not told its key.

        """
        if device not in self._secrets:
            raise SecureAggregationError("", f"names device {device!r} without its channel key")
        return self._secrets[device][1]


@dataclass(frozen=True)
class ReadyMasks:
    """Masks that can be used."""

    step: int
    circle: Sequence[str]
    masks: StepMasks
    form: ContributionForm


class Masking:
    """Answers what the coordinator asks, and has the masks of the step that is on.

    Args:
        channels: to the other devices.
        layout: of the slices, as this device writes them.
        settings: of the session.

    """

    def __init__(self, channels: Channels, layout: Layout, settings: pb.SecureAggregation) -> None:
        self.layout = layout
        self._channels, self._settings = channels, settings
        self._rounds: dict[bytes, tuple[int, list[str], StepMasks]] = {}
        """By the public key: the step, the circle, the masks."""
        self._ready: ReadyMasks | None = None
        self._once = MaskedOnce()
        self._lock = threading.Lock()

    def vouch_with(self, material: TlsMaterial) -> pb.ChannelKey:
        """Let a certificate, which may have been renewed, vouch for this device's key; return the key.

        Raises:
            TlsError: keys of this kind cannot sign here.

        """
        with self._lock:
            self._channels.vouch_with(material)
            return self._channels.key

    def take_ready(self, step: int) -> ReadyMasks | None:
        """Return the masks of a step, once; None as long as they are not agreed on."""
        with self._lock:
            ready = self._ready
            if ready is None or ready.step != step:
                return None
            self._ready = None
            if not self._once.may_mask(step, ready.circle):
                return None
            self._once.contributed(step, ready.circle)
            return ready

    def keys_ahead(self, step: int, circle: Sequence[str]) -> pb.StepKeys | None:
        """Return keys for a step to come, if this device may mask in it in that circle.

        Raises:
            SecureAggregationError: the coordinator has not told the key of one of the circle.

        """
        with self._lock:
            return self._make_keys(step, list(circle)) if self._once.may_mask(step, circle) else None

    def is_ready(self, step: int) -> bool:
        """Whether there are masks of a step that were not taken."""
        return self._ready is not None and self._ready.step == step

    def has_revealed(self, step: int) -> bool:
        """Whether the contributions to a step may be known in sum."""
        with self._lock:
            return self._once.has_revealed(step)

    def seal_state(
        self, step: int, state: bytes, readers: Collection[pb.ChannelKey]
    ) -> tuple[bytes, pb.SnapshotHeader]:
        """Return this device's state as its readers alone can read it, and what they need for that.

        Raises:
            SecureAggregationError: nobody vouches for a reader's key.

        """
        with self._lock:
            for key in readers:
                self._channels.learn(key)
            names = {key.device for key in readers} - {self._channels.device}
            secrets = {name: self._channels.secret(name) for name in names}
        sealed, boxes = seal_state(state, self._channels.session, step, self._channels.device, secrets)
        keys = [pb.SealedKey(device=reader, box=box) for reader, box in boxes.items()]
        return sealed, pb.SnapshotHeader(donor=self._channels.key, keys=keys)

    def open_state(self, header: pb.SnapshotHeader, sealed: bytes) -> bytes:
        """Return the state that another device sealed for this one.

        Raises:
            SecureAggregationError: it did not, or nobody vouches for its key.

        """
        device, donor = self._channels.device, header.donor.device
        box = next((key.box for key in header.keys if key.device == device), b"")
        with self._lock:
            self._channels.learn(header.donor)
            secret = self._channels.secret(donor)
        return open_state(sealed, self._channels.session, header.step, donor, device, secret, box)

    def answer(self, frame: pb.Frame) -> pb.Frame | None:
        """Take what the coordinator says of masks; return what is to be answered, if anything.

        Raises:
            SecureAggregationError: another device, or the coordinator, broke the protocol: nothing is revealed.

        """
        with self._lock:
            if frame.HasField("keys_wanted"):
                return self._announce(frame.step, frame.keys_wanted)
            if frame.HasField("maskers"):
                self._take_maskers(frame.step, frame.maskers)
            elif frame.HasField("unmask"):
                return self._reveal(frame.step, frame.unmask)
        return None

    def _announce(self, step: int, wanted: pb.KeysWanted) -> pb.Frame | None:
        device, circle = self._channels.device, list(wanted.circle)
        if device not in circle or circle != sorted(set(circle)):
            raise SecureAggregationError("", f"asks for keys of step {step} for a circle that cannot be")
        for key in wanted.channel_keys:  # whatever is answered: the coordinator tells each once
            self._channels.learn(key)
        if not self._once.may_mask(step, circle):
            return pb.Frame(step=step, step_keys=pb.StepKeys(attempt=wanted.attempt))
        return pb.Frame(step=step, step_keys=self._make_keys(step, circle, wanted.attempt))

    def _make_keys(self, step: int, circle: list[str], attempt: int = 0) -> pb.StepKeys:
        device = self._channels.device
        secrets = {other: self._channels.secret(other) for other in circle if other != device}
        masks = StepMasks(self._channels.session, step, device, secrets, self._settings.least)
        self._rounds[masks.keys.public] = step, circle, masks
        for old in list(self._rounds)[:-_KEPT_ROUNDS]:
            del self._rounds[old]
        return step_keys_to_proto(device, masks.keys, attempt)

    def _take_maskers(self, step: int, settled: pb.Maskers) -> None:
        known = self._rounds.get(settled.public)
        if known is None or known[0] != step:
            return  # they are about keys that were given up
        _, circle, masks = known
        try:
            maskers = set_from_bytes(circle, settled.maskers)
            neighbours = set(Graph(circle, step).neighbours(self._channels.device)) & set(maskers)
            announced = announcements_from_bytes(neighbours, settled.announcements)
            scales = scales_by_slice(self.layout, settled.scales)
        except SecureAggregationError:
            raise
        except ValueError as error:
            raise SecureAggregationError("", f"says wrongly who masks in step {step}: {error}") from error
        is_told_again = masks.is_settled
        least, bits = self._settings.least, self._settings.bits
        masks.take(maskers, announced, digest_of_terms(bits, least, circle, settled.maskers, settled.scales))
        if is_told_again:
            return  # what this device contributes under these masks has left, or will
        form = ContributionForm(self.layout, self._settings.bits, len(maskers), scales)
        self._ready = ReadyMasks(step, circle, masks, form)

    def _reveal(self, step: int, wanted: pb.Unmask) -> pb.Frame | None:
        known = self._rounds.get(wanted.public)
        if known is None or known[0] != step:
            return None
        _, circle, masks = known
        try:
            contributed = set_from_bytes(circle, wanted.contributed)
        except ValueError as error:
            raise SecureAggregationError("", f"asks wrongly for shares of step {step}: {error}") from error
        if not self._once.may_reveal(step, wanted.public):
            raise SecureAggregationError(
                "", f"asks to unmask two sums in step {step}: they could tell one device's part"
            )
        revealed = masks.reveal(contributed)
        self._once.revealed(step, wanted.public)
        return pb.Frame(step=step, revealed=revealed_to_proto(wanted.public, revealed))
