"""Keys for the next step, which devices tell with their shares of the one before: that saves a step a round trip."""

from collections.abc import Collection, Mapping

from edgenewton.secure_aggregation.messages import step_keys_from_proto
from edgenewton.v1 import exchange_pb2 as pb

from coordinator.session.masked_round import MaskedRound


class KeysAhead:
    """Collects them. They are of use only if the circle stays as it is: shares are sealed for its devices.

    Args:
        session: its name.

    """

    def __init__(self, session: str) -> None:
        self._session = session
        self._round: MaskedRound | None = None
        self._channel_keys: Mapping[str, bytes] = {}
        self._is_open = False
        self._awaited: set[str] = set()

    def expect(self, of: MaskedRound, following: int, channel_keys: Mapping[str, bytes]) -> None:
        """Expect keys beside what unmasks the sum of a round.

        Args:
            of: the round, of which it is settled who contributed: they know which step follows.
            following: that step's number.
            channel_keys: of the devices of the circle.

        """
        self._round = MaskedRound(self._session, following, of.circle)
        self._channel_keys, self._is_open = dict(channel_keys), True
        self._awaited = set(of.contributed)

    def take(self, device: str, step: int, keys: pb.StepKeys) -> None:
        """Take a device's keys; those for another step, or that come too late, are dropped.

        Raises:
            SecureAggregationError: they are not for just its neighbours.

        """
        of = self._round
        if of is None or step != of.step or device not in of.circle:
            return
        of.take_keys(device, step_keys_from_proto(device, of.neighbours(device), keys))
        self._awaited.discard(device)

    def begin(self, step: int, channel_keys: Mapping[str, bytes]) -> MaskedRound | None:
        """Return the round of a step with the keys that have come, once; None if they are for another circle."""
        is_open, self._is_open = self._is_open, False
        if is_open and self._round is not None and self._round.step == step and self._channel_keys == channel_keys:
            return self._round
        self._round, self._awaited = None, set()
        return None

    @property
    def awaited(self) -> Collection[str]:
        """The devices of which keys may still come that nobody has asked for."""
        return self._awaited

    def give_up(self) -> set[str]:
        """Return the devices whose keys did not come by themselves, so that they are asked, once."""
        awaited, self._awaited = self._awaited, set()
        return awaited
