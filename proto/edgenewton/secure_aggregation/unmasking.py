"""The coordinator's side of a step: the masks that are left in the sum, from what the devices reveal."""

from collections.abc import Collection, Mapping

from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.graph import Graph
from edgenewton.secure_aggregation.key_agreement import KeyAgreementError, PrivateKey, public_key
from edgenewton.secure_aggregation.mask_stream import MaskKey, change_by_masks
from edgenewton.secure_aggregation.modular_integers import Integers, keep_bits
from edgenewton.secure_aggregation.shamir import Combiner, ShareError
from edgenewton.secure_aggregation.step_keys import StepKeys, digest
from edgenewton.secure_aggregation.step_masks import Revealed, pair_purpose, share_numbers


class Unmasking:
    """Takes masks out of the sum of a step.

    Args:
        session: its name.
        step: its number.
        circle: the devices that might have taken part.
        announced: the step keys of those that mask.
        contributed: those whose vectors are in the sum.
        told: digest of what the devices were told: see `StepMasks.take`.

    """

    def __init__(
        self,
        session: str,
        step: int,
        circle: Collection[str],
        announced: Mapping[str, StepKeys],
        contributed: Collection[str],
        told: bytes = b"",
    ) -> None:
        self._session, self._step, self._told = session, step, told
        self._announced, self.contributed = announced, frozenset(contributed)
        self._numbers = share_numbers(circle)
        graph = Graph(circle, step)
        self._neighbours = {device: set(graph.neighbours(device)) for device in announced}
        self._needed = graph.needed
        # The key of one that dropped out is needed only if some neighbour's sum still holds a mask of it.
        dropped = announced.keys() - self.contributed
        self._wanted = self.contributed | {d for d in dropped if self._neighbours[d] & self.contributed}
        self._shares: dict[str, dict[int, bytes]] = {device: {} for device in self._wanted}
        self._revealed: set[str] = set()
        self._self_masks: list[MaskKey] = []
        self._pair_masks: dict[tuple[str, str], MaskKey] = {}
        """Of each that dropped out with each neighbour that contributed."""

    @property
    def revealed(self) -> Collection[str]:
        """Devices that have revealed their shares."""
        return self._revealed

    @property
    def is_ready(self) -> bool:
        """Whether enough was revealed."""
        return all(len(self._shares[device]) >= self._needed for device in self._wanted)

    def take(self, device: str, revealed: Revealed) -> None:
        """Take what a device reveals; once enough is there, it is checked and not needed.

        Raises:
            SecureAggregationError: it revealed already, or a share is missing, is too many, or is not the one that it
                was given.

        """
        if device in self._revealed:
            raise SecureAggregationError(device, f"revealed its shares of step {self._step} twice")
        if device not in self._announced:
            raise SecureAggregationError(device, f"reveals shares of step {self._step}, in which it does not mask")
        of = {device, *(self._neighbours[device] & self._announced.keys())}
        if revealed.of_seeds.keys() != of & self.contributed or revealed.of_keys.keys() != of - self.contributed:
            raise SecureAggregationError(device, f"did not reveal just the shares of step {self._step} that are needed")
        for other, share in revealed.of_seeds.items():
            self._check(device, other, share, self._announced[other].digests[device].of_seed)
        for other, share in revealed.of_keys.items():
            self._check(device, other, share, self._announced[other].digests[device].of_key)
        if self.is_ready:
            return  # another thread may combine the shares
        self._revealed.add(device)
        for other, share in (*revealed.of_seeds.items(), *revealed.of_keys.items()):
            if other in self._wanted:
                self._shares[other][self._numbers[device]] = share

    def unmask(self, stream: int, summed: Integers, bits: int) -> None:
        """Take the masks out of a sum, in place, modulo 2^bits.

        Raises:
            SecureAggregationError: a device gave the others shares that are not those of its secret.
            RuntimeError: not enough was revealed.

        """
        if not self._self_masks:
            self._combine()
        # What `other` did with the mask of the pair is undone.
        pairs = self._pair_masks.items()
        change_by_masks(
            summed,
            stream,
            added=[key for (dropped, other), key in pairs if other > dropped],
            subtracted=[*self._self_masks, *(key for (dropped, other), key in pairs if other < dropped)],
        )
        keep_bits(summed, bits)

    def _combine(self) -> None:
        if not self.is_ready:
            raise RuntimeError(f"too few devices have revealed their shares of step {self._step}")
        combiners: dict[tuple[int, ...], Combiner] = {}
        secrets = {}
        for device in sorted(self._wanted):
            numbers = tuple(sorted(self._shares[device])[: self._needed])
            if numbers not in combiners:
                combiners[numbers] = Combiner(numbers)
            secrets[device] = self._secret_of(device, combiners[numbers], {n: self._shares[device][n] for n in numbers})
        for device in self._wanted - self.contributed:
            private = PrivateKey(secrets[device])
            for other in self._neighbours[device] & self.contributed:
                purpose = pair_purpose(self._session, self._step, device, other, self._told)
                try:
                    key = private.agree(self._announced[other].public, purpose)
                    self._pair_masks[device, other] = MaskKey(key)
                except KeyAgreementError as error:
                    raise SecureAggregationError(other, f"has no key for step {self._step}: {error}") from error
        self._self_masks = [MaskKey(secrets[device]) for device in sorted(self.contributed)]

    def _secret_of(self, device: str, combiner: Combiner, shares: Mapping[int, bytes]) -> bytes:
        announced = self._announced[device]
        try:
            secret = combiner.combine(shares)
        except ShareError:
            secret = b""
        is_its_own = bool(secret) and (
            digest(secret) == announced.seed_digest
            if device in self.contributed
            else public_key(secret) == announced.public
        )
        if not is_its_own:
            text = f"gave the others shares in step {self._step} that are not those of the secret it told the digest of"
            raise SecureAggregationError(device, text)
        return secret

    def _check(self, device: str, other: str, share: bytes, expected: bytes) -> None:
        if digest(share) != expected:
            text = f"revealed a share of device {other!r} in step {self._step} that is not the one it was given"
            raise SecureAggregationError(device, text)
