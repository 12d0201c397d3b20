"""What devices bring to a session that gathers, and that is not the session's: another model, or an unknown state.

One device alone decides neither: it could make all others be refused, or take its weights over. So it waits until most
of the awaited devices have come with the same, or until that has become impossible.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edgenewton.v1.fingerprint import FROZEN_OPTION

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
        return self._count(lambda other: _is_same_model(other, joining))

    def with_state_of(self, joining: Joining) -> int:
        """Return how many of those that wait have a device's model and its state, but for rounding."""
        return self._count(lambda other: _is_same_model(other, joining) and _is_same_state(other, joining))

    def _count(self, is_like: Callable[[Joining], bool]) -> int:
        return sum(is_like(claim.joining) for claim in self._of.values())


def _is_same(one: Joining, other: Joining) -> bool:
    return _is_same_model(one, other) and _is_same_state(one, other)


def _is_same_model(one: Joining, other: Joining) -> bool:
    is_frozen_same = one.options.get(FROZEN_OPTION) == other.options.get(FROZEN_OPTION)
    return one.model == other.model and (is_frozen_same or are_alike(one.frozen_sketch, other.frozen_sketch))


def _is_same_state(one: Joining, other: Joining) -> bool:
    # A device that only lost its connection says nothing of its weights.
    is_told = bool(one.weights_digest and other.weights_digest)
    is_like = one.weights_digest == other.weights_digest or are_alike(one.sketch, other.sketch)
    return one.next_step == other.next_step and (not is_told or is_like)
