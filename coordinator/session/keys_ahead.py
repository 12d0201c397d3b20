"""Keys for the next step, which devices tell with what they contribute to the one before: that saves a round trip."""

from collections.abc import Mapping

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
        self._channel_keys: Mapping[str, bytes] = {}
        self._told: dict[str, tuple[int, pb.StepKeys]] = {}
        """By device: for which step, and the keys."""

    def take(self, device: str, of: MaskedRound, step: int, keys: pb.StepKeys) -> None:
        """Take a device's keys; those of devices that are not in the circle are dropped.

        Args:
            device: its name.
            of: the round that is on.
            step: that the keys are for.
            keys: the keys.

        Raises:
            SecureAggregationError: they are for more or fewer neighbours than it has.

        """
        if device in of.circle:
            step_keys_from_proto(device, of.neighbours(device), keys)  # in each step a device has as many
            self._told[device] = step, keys

    def begin(self, step: int, channel_keys: Mapping[str, bytes], attempt: int) -> MaskedRound:
        """Return a round with the keys that have come for it.

        Args:
            step: its number.
            channel_keys: the public ones of the devices of its circle.
            attempt: tells it from an earlier one.

        """
        of = MaskedRound(self._session, step, channel_keys, attempt)
        told, self._told = self._told, {}
        before, self._channel_keys = self._channel_keys, dict(channel_keys)
        if before == self._channel_keys:
            for device, (following, keys) in told.items():
                if following == step:
                    of.take_keys(device, step_keys_from_proto(device, of.neighbours(device), keys))
        return of
