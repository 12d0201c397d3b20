"""The masks of one step: whose keys came, who masks, and what their sum is once enough was revealed."""

from collections.abc import Collection, Sequence
from enum import Enum, auto
from typing import Any

import numpy as np
import numpy.typing as npt
from edgenewton.secure_aggregation.fixed_point import FixedPoint
from edgenewton.secure_aggregation.graph import Graph
from edgenewton.secure_aggregation.modular_integers import Integers
from edgenewton.secure_aggregation.step_keys import Announcement, StepKeys
from edgenewton.secure_aggregation.step_masks import Revealed
from edgenewton.secure_aggregation.unmasking import Unmasking


class MaskingPhase(Enum):
    """What a round waits for."""

    KEYS = auto()
    """The keys of the devices that may mask."""
    CONTRIBUTIONS = auto()
    """Their masked contributions; who masks stays as it is."""
    SHARES = auto()
    """What unmasks the sum; who contributed stays as it is."""


class MaskedRound:
    """One attempt at a step.

    Args:
        session: its name.
        step: its number.
        circle: the devices that may mask.
        attempt: tells it from an earlier one.

    """

    def __init__(self, session: str, step: int, circle: Collection[str], attempt: int = 0) -> None:
        self.step = step
        self.attempt = attempt
        self.circle = sorted(circle)
        self.phase = MaskingPhase.KEYS
        self.keys: dict[str, StepKeys] = {}
        self.declined: set[str] = set()
        """Devices that mask no more in this step: see `edge_client.exchange.remote.masked_once.MaskedOnce`."""
        self.told = b""
        """Digest of what the devices are told, once it is settled who masks."""
        self._session = session
        self._graph = Graph(self.circle, step)
        self._unmasking: Unmasking | None = None

    @property
    def needed(self) -> int:
        """How many devices must mask, and reveal what they hold, at least."""
        return self._graph.needed

    @property
    def least_contributions(self) -> int:
        """Of how many devices a sum must be, for the devices to unmask it."""
        return self._graph.least_contributions

    @property
    def maskers(self) -> Collection[str]:
        """The devices that mask."""
        return self.keys.keys() if self.phase is not MaskingPhase.KEYS else ()

    def may_mask(self, device: str) -> bool:
        """Whether a device's contribution can be in the sum."""
        return device in (self.circle if self.phase is MaskingPhase.KEYS else self.maskers)

    @property
    def contributed(self) -> Collection[str]:
        """Those whose contributions are summed up, once that is settled."""
        return () if self._unmasking is None else self._unmasking.contributed

    @property
    def is_unmasked(self) -> bool:
        """Whether enough was revealed."""
        return self._unmasking is not None and self._unmasking.is_ready

    def neighbours(self, device: str) -> list[str]:
        """Return with which devices of the circle one masks."""
        return self._graph.neighbours(device)

    def take_keys(self, device: str, keys: StepKeys) -> None:
        """Take a device's keys; those that come too late are dropped."""
        if self.phase is MaskingPhase.KEYS and device in self.circle:
            self.keys[device] = keys

    def close_keys(self) -> None:
        """Settle who masks: those whose keys are here."""
        self.phase = MaskingPhase.CONTRIBUTIONS

    def decline(self, device: str) -> None:
        """Take note that a device does not mask."""
        if self.phase is MaskingPhase.KEYS and device in self.circle:
            self.declined.add(device)

    def announcements_for(self, device: str) -> dict[str, Announcement]:
        """Return what one that masks needs of its neighbours."""
        others = self._graph.neighbours(device)
        return {other: self.keys[other].for_neighbour(device) for other in others if other in self.keys}

    def ask(self, contributed: Collection[str]) -> None:
        """Settle whose contributions are summed up."""
        self.phase = MaskingPhase.SHARES
        self._unmasking = Unmasking(self._session, self.step, self.circle, self.keys, contributed, self.told)

    def held_by(self, device: str) -> tuple[set[str], set[str]]:
        """Return of which devices that dropped out, and of which that contributed, one is to reveal a share."""
        of = {device, *self._graph.neighbours(device)} & self.keys.keys()
        return of - set(self.contributed), of & set(self.contributed)

    def take_revealed(self, device: str, revealed: Revealed) -> None:
        """Take what a device reveals; nothing happens if it did already, or nobody asked.

        Raises:
            SecureAggregationError: a share is not the one that it was given.

        """
        if self._unmasking is not None and device not in self._unmasking.revealed:
            self._unmasking.take(device, revealed)

    def sum_of(self, stream: int, masked: Sequence[Integers], form: FixedPoint) -> npt.NDArray[np.floating[Any]]:
        """Return the sum of the values of those that contributed.

        Args:
            stream: number of the vector.
            masked: of each, as it came.
            form: how they are written.

        Raises:
            SecureAggregationError: a device gave the others shares of another secret.

        """
        assert self._unmasking is not None
        total = masked[0].copy()
        for vector in masked[1:]:
            total += vector  # modulo a power of two: it is reduced once, when the masks are taken out
        self._unmasking.unmask(stream, total, form.sum_bits)
        return form.decode(total)
