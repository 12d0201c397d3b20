"""A device's masks in one step, and what it reveals at its end."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.graph import Graph
from edgenewton.secure_aggregation.key_agreement import KeyAgreementError, PrivateKey
from edgenewton.secure_aggregation.mask_stream import MaskKey, change_by_masks
from edgenewton.secure_aggregation.modular_integers import Integers, keep_bits, word_of
from edgenewton.secure_aggregation.shamir import random_secret, split
from edgenewton.secure_aggregation.step_keys import Announcement, Channel, Shares, StepKeys, digest


@dataclass(frozen=True)
class Revealed:
    """What a device reveals at the end of a step: one share of each neighbour, and one of its own."""

    of_keys: Mapping[str, bytes]
    """Of those that dropped out, whose pairwise masks are still in the sum."""
    of_seeds: Mapping[str, bytes]
    """Of those that contributed, whose self masks are in the sum."""


def pair_purpose(session: str, step: int, one: str, other: str, told: bytes) -> bytes:
    """Return what the key of a pair's masks is derived for; `told` is the digest of what all devices were told."""
    return "\0".join(("edgenewton masks", session, str(step), *sorted((one, other)), "")).encode() + told


def share_numbers(circle: Collection[str]) -> dict[str, int]:
    """Return the number of the share that each device of a circle holds of all secrets."""
    return {device: number for number, device in enumerate(sorted(circle), start=1)}


class StepMasks:
    """A device's masks in one step. It tells its keys, takes those of the others, masks vectors, and reveals once.

    Args:
        session: its name.
        step: its number.
        device: this one's name.
        secrets: that it has in common with each other device that may take part, 32 bytes: `channel_secret`.
        least: so many must mask at least, this one among them.

    """

    def __init__(self, session: str, step: int, device: str, secrets: Mapping[str, bytes], least: int) -> None:
        circle = [device, *secrets]
        self._session, self._step, self._device, self._least = session, step, device, least
        self._graph = Graph(circle, step)
        self._neighbours = self._graph.neighbours(device)
        self._channels = {other: Channel(session, step, secrets[other]) for other in self._neighbours}
        self._secret, self._seed = random_secret(), random_secret()
        self._key = PrivateKey(self._secret)
        self._held: dict[str, Shares] = {}
        self._self_mask = MaskKey(self._seed)
        self._pair_masks: dict[str, MaskKey] = {}
        self._maskers: frozenset[str] | None = None
        self._told = b""
        self._used: set[int] = set()
        self._contributed: frozenset[str] | None = None
        self.keys = self._make_keys(share_numbers(circle))
        """What the others need for this step."""

    @property
    def is_settled(self) -> bool:
        """Whether it is known who masks."""
        return self._maskers is not None

    def take(self, maskers: Collection[str], announcements: Mapping[str, Announcement], told: bytes = b"") -> None:
        """Take who masks in this step, and what those of them announced that are neighbours.

        Args:
            maskers: their names.
            announcements: of neighbours.
            told: digest of all else that the devices were told of the step. The masks of a pair cancel only if both
                were told the same: else a coordinator could have all but one round their values to zeros.

        Raises:
            SecureAggregationError: something came in a device's name that is not from it; too few mask to hide among;
                or others were named before.

        """
        if self._maskers is not None:
            if (self._maskers, self._told) != (frozenset(maskers), told):
                raise SecureAggregationError("", f"says something else of step {self._step} than it did before")
            return
        expected = set(self._neighbours) & set(maskers)
        if self._device not in maskers or announcements.keys() != expected:
            raise SecureAggregationError("", f"did not pass on the keys of just those that mask in step {self._step}")
        if len(maskers) < self._least or len(expected) + 1 < self._graph.needed:
            raise SecureAggregationError(
                "", f"has {len(maskers)} devices mask in step {self._step}, too few to hide among: {self._wanted}"
            )
        for other, announced in announcements.items():
            self._held[other] = self._channels[other].open(other, self._device, announced)
            purpose = pair_purpose(self._session, self._step, self._device, other, told)
            try:
                self._pair_masks[other] = MaskKey(self._key.agree(announced.public, purpose))
            except KeyAgreementError as error:
                raise SecureAggregationError(other, f"has no key for step {self._step}: {error}") from error
        self._maskers, self._told = frozenset(maskers), told

    def mask(self, stream: int, values: Integers, bits: int) -> Integers:
        """Return a vector under this device's masks.

        Args:
            stream: number of the vector in the step; each is used once.
            values: integers modulo 2^bits.
            bits: of each.

        Raises:
            RuntimeError: the others' keys were not taken; or the stream was used: two vectors under one mask tell their
                difference.

        """
        if self._maskers is None:
            raise RuntimeError(f"step {self._step} has no masks yet: the keys of the others were not taken")
        if stream in self._used:
            raise RuntimeError(f"vector {stream} of step {self._step} was masked already")
        self._used.add(stream)
        masked = values.astype(word_of(bits))
        pairs = self._pair_masks.items()
        change_by_masks(
            masked,
            stream,
            added=[self._self_mask, *(key for other, key in pairs if self._device < other)],
            subtracted=[key for other, key in pairs if self._device > other],
        )
        keep_bits(masked, bits)
        return masked

    def reveal(self, contributed: Collection[str]) -> Revealed:
        """Return the shares that unmask the sum of those that contributed; of each device of one secret alone.

        Raises:
            SecureAggregationError: another answer was given already, the set is not one of devices that mask, or it is
                too small.

        """
        whose = frozenset(contributed)
        if self._contributed is not None and self._contributed != whose:
            raise SecureAggregationError(
                "", f"asks for both kinds of shares of device {min(self._contributed ^ whose)!r} in step {self._step}"
            )
        if self._maskers is None or not whose <= self._maskers:
            raise SecureAggregationError("", f"asks to unmask devices that do not mask in step {self._step}")
        if len(whose) < max(self._least, self._graph.least_contributions):
            raise SecureAggregationError(
                "", f"asks to unmask the sum of {len(whose)} devices in step {self._step}: {self._wanted}"
            )
        self._contributed = whose
        return Revealed(
            {other: shares.of_key for other, shares in self._held.items() if other not in whose},
            {other: shares.of_seed for other, shares in self._held.items() if other in whose},
        )

    @property
    def _wanted(self) -> str:
        return f"at least {self._least}, and two thirds of those that may take part, are needed"

    def _make_keys(self, numbers: Mapping[str, int]) -> StepKeys:
        holders = [self._device, *self._neighbours]
        needed = self._graph.needed
        of = {numbers[holder]: holder for holder in holders}
        of_key, of_seed = split(self._secret, of, needed), split(self._seed, of, needed)
        shares = {holder: Shares(of_key[number], of_seed[number]) for number, holder in of.items()}
        self._held[self._device] = shares[self._device]
        public, seed_digest = self._key.public, digest(self._seed)
        boxes = {
            other: self._channels[other].seal(self._device, other, public, seed_digest, shares[other])
            for other in self._neighbours
        }
        return StepKeys(public, seed_digest, boxes, {holder: given.digests for holder, given in shares.items()})
