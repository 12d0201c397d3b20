"""What devices tell each other before a step: keys for it, and shares of their secrets, for the receiver alone."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.key_agreement import PUBLIC_LENGTH, KeyAgreementError, agree, derive
from edgenewton.secure_aggregation.shamir import LENGTH as SHARE_LENGTH

HASH_LENGTH = 16
BOX_LENGTH = 2 * SHARE_LENGTH + 16
_NONCE = bytes(12)
"""Constant, since each key is used for one box: the sender's public key of the step goes into it."""


def digest(data: bytes) -> bytes:
    """Return the digest (16 bytes) by which a share or a seed is recognised once it is revealed."""
    return hashlib.sha256(b"edgenewton secure aggregation\0" + data).digest()[:HASH_LENGTH]


@dataclass(frozen=True)
class Shares:
    """What one device holds of another's two secrets in a step; it reveals one of them, never both."""

    of_key: bytes
    """Of the private key of its pairwise masks, 32 bytes."""
    of_seed: bytes
    """Of the seed of its self mask, 32 bytes."""

    @property
    def digests(self) -> "ShareDigests":
        """By which they are recognised."""
        return ShareDigests(digest(self.of_key), digest(self.of_seed))


@dataclass(frozen=True)
class ShareDigests:
    """The digests of both shares that a device holds, 16 bytes each; everybody may know them."""

    of_key: bytes
    of_seed: bytes


@dataclass(frozen=True)
class Announcement:
    """What of a device's step keys one of its neighbours needs."""

    public: bytes
    """The device's public key of the step, 32 bytes."""
    seed_digest: bytes
    """Of the seed of its self mask, 16 bytes."""
    box: bytes
    """The neighbour's shares, which it alone can read, 80 bytes."""
    digests: ShareDigests
    """Those of these shares, as the coordinator knows them."""


@dataclass(frozen=True)
class StepKeys:
    """What a device tells before a step.

    Attributes:
        public: its public key of the step, 32 bytes.
        seed_digest: of the seed of its self mask, 16 bytes.
        boxes: for each neighbour its shares, 80 bytes.
        digests: for each neighbour, and the device itself, those of the shares that it holds.

    """

    public: bytes
    seed_digest: bytes
    boxes: Mapping[str, bytes]
    digests: Mapping[str, ShareDigests]

    def check(self, device: str, neighbours: Collection[str]) -> None:
        """Check lengths, and that each neighbour is given something.

        Raises:
            SecureAggregationError: something is missing, too much, or too long.

        """
        if len(self.public) != PUBLIC_LENGTH or len(self.seed_digest) != HASH_LENGTH:
            raise SecureAggregationError(device, "sent step keys whose public key or seed digest has a wrong length")
        differing = (self.boxes.keys() ^ set(neighbours)) | (self.digests.keys() ^ {device, *neighbours})
        if differing:
            raise SecureAggregationError(device, f"sent step keys that miss, or do not need, device {min(differing)!r}")
        if any(len(box) != BOX_LENGTH for box in self.boxes.values()) or any(
            len(given) != HASH_LENGTH for of in self.digests.values() for given in (of.of_key, of.of_seed)
        ):
            raise SecureAggregationError(device, "sent step keys with a box or a digest of a wrong length")

    def for_neighbour(self, name: str) -> Announcement:
        """Return what a neighbour needs."""
        return Announcement(self.public, self.seed_digest, self.boxes[name], self.digests[name])


@dataclass(frozen=True)
class Channel:
    """What two devices can say to each other in a step so that nobody else reads or changes it.

    Args:
        session: its name.
        step: its number.
        secret: that the two have in common for the session, 32 bytes: `channel_secret`.

    """

    session: str
    step: int
    secret: bytes

    def seal(self, sender: str, receiver: str, public: bytes, seed_digest: bytes, shares: Shares) -> bytes:
        """Return a box with shares, which is worth nothing beside another public key or seed digest of the step."""
        context = self._context(sender, receiver, public, seed_digest)
        return self._cipher(context).encrypt(_NONCE, shares.of_key + shares.of_seed, context)

    def open(self, sender: str, receiver: str, announced: Announcement) -> Shares:
        """Return the shares in a box.

        Raises:
            SecureAggregationError: the sender did not make it for this step, this receiver and these keys; or it told
                everybody digests of others.

        """
        context = self._context(sender, receiver, announced.public, announced.seed_digest)
        try:
            opened = self._cipher(context).decrypt(_NONCE, announced.box, context)
        except InvalidTag:
            text = f"did not itself seal the shares that came in its name for {receiver!r} in step {self.step}"
            raise SecureAggregationError(sender, text) from None
        shares = Shares(opened[:SHARE_LENGTH], opened[SHARE_LENGTH:])
        if shares.digests != announced.digests:
            text = f"gave {receiver!r} other shares in step {self.step} than those whose digests it told"
            raise SecureAggregationError(sender, text)
        return shares

    def _context(self, sender: str, receiver: str, public: bytes, seed_digest: bytes) -> bytes:
        head = "\0".join(("edgenewton shares", self.session, str(self.step), sender, receiver, ""))
        return head.encode() + public + seed_digest

    def _cipher(self, context: bytes) -> AESGCM:
        return AESGCM(derive(self.secret, context))


def channel_secret(private: bytes, device: str, other: str, public: bytes) -> bytes:
    """Return the secret (32 bytes) that two devices have in common for a session.

    Args:
        private: this device's key for the session, 32 bytes.
        device: its name.
        other: the other's name.
        public: the other's key for the session, 32 bytes, as its certificate vouches for.

    Raises:
        SecureAggregationError: the other's key is none.

    """
    try:
        return agree(private, public, "\0".join(("edgenewton channel", *sorted((device, other)))).encode())
    except KeyAgreementError as error:
        raise SecureAggregationError(other, f"has no key for the session: {error}") from error
