"""What devices bring to a session that gathers, and that is not the session's: another model, or an unknown state.

One device alone decides neither: it could make all others be refused, or take its weights over. So it waits until most
of the awaited devices have come with the same, or until that has become impossible.
"""

from dataclasses import dataclass

from edgenewton.v1.fingerprint import FROZEN_OPTION

from coordinator.session.beginning import have_same_weights
from coordinator.session.drift import are_alike
from coordinator.session.members import Joining
from coordinator.session.refusal import RefusedError, Status

RETRY_S = 10.0
"""A device that waits asks again; one that did not for its lease and so many seconds is gone."""


@dataclass
class _Claim:
    joining: Joining
    since: float
    heard_at: float


class Claims:
    """The devices that wait, with what they bring.

    Args:
        lease_s: seconds without a sign of life, and `RETRY_S` more, after which a device is gone.
        patience_s: seconds that a device waits at most.

    """

    def __init__(self, lease_s: float, patience_s: float) -> None:
        self._lease_s = lease_s + RETRY_S
        self._patience_s = patience_s
        self._of: dict[str, _Claim] = {}

    def note(self, joining: Joining, most: int, now: float) -> bool:
        """Take note of what a device brings; return whether that is new.

        Raises:
            RefusedError: `most` devices wait already.

        """
        self._of = {name: claim for name, claim in self._of.items() if now < claim.heard_at + self._lease_s}
        before = self._of.get(joining.device)
        if before is None and len(self._of) >= most:
            raise RefusedError(
                Status.RESOURCE_EXHAUSTED,
                f"device {joining.device!r} has to wait, but {most} devices do so already; try again later",
            )
        is_same = before is not None and _is_same(before.joining, joining)
        since = before.since if before is not None else now
        self._of[joining.device] = _Claim(joining, since, now)
        return not is_same

    def withdraw(self, device: str) -> None:
        """Forget what a device brought, if it did."""
        self._of.pop(device, None)

    def is_out_of_time(self, device: str, now: float) -> bool:
        """Whether a device has waited as long as it may."""
        return now >= self._of[device].since + self._patience_s

    def with_model_of(self, joining: Joining) -> int:
        """Return how many of those that wait have a device's model and options."""
        return sum(_is_same_model(claim.joining, joining) for claim in self._of.values())

    def state_of_most(self, joining: Joining, needed: int, *, are_all_here: bool) -> Joining | None:
        """Return whose state most of those that wait have, if they are so many; of a device's model and step.

        The weights must be equal, but for rounding. A device that only lost its connection says nothing of its own,
        and so has those of any. Where each device has weights of its own, as with curvature of its own, the largest set
        counts, and else the first; but only once all are here, since those to come may show which it is.

        Args:
            joining: the device.
            needed: how many are most.
            are_all_here: whether all awaited devices have come or wait.

        """
        same = [
            claim.joining
            for claim in self._of.values()
            if _is_same_model(claim.joining, joining) and claim.joining.next_step == joining.next_step
        ]
        told = [other for other in same if other.weights_digest]
        sets = ([other for other in told if have_same_weights(other, one)] for one in told)
        alike = max(sets, key=len, default=[])
        untold = [other for other in same if not other.weights_digest]
        is_certain = len(alike) + len(untold) >= needed or are_all_here
        return [*alike, *untold][0] if len(same) >= needed and is_certain else None

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._of)


def _is_same(one: Joining, other: Joining) -> bool:
    is_step_same = one.next_step == other.next_step
    return is_step_same and _is_same_model(one, other) and have_same_weights(one, other)


def _is_same_model(one: Joining, other: Joining) -> bool:
    is_frozen_same = one.options.get(FROZEN_OPTION) == other.options.get(FROZEN_OPTION)
    return one.model == other.model and (is_frozen_same or are_alike(one.frozen_sketch, other.frozen_sketch))
