"""How long a device computes and exchanges, for a session that chooses how often it exchanges."""

import time

from edge_client.exchange.interface import Pace


class PaceMeter:
    """Told of what happens, in this order in each round: `begin_round`, `end_batches`, `complete`, `arrive`."""

    def __init__(self) -> None:
        self._batch_s = 0.0
        self._exchange_s: float | None = None
        self._round_s = 0.0
        self._computing_s = 0.0
        self.agreement = 1.0
        """How far the device's last move was that of all."""
        self._at = time.perf_counter()

    @property
    def pace(self) -> Pace | None:
        """What was measured, once there was an exchange."""
        if self._exchange_s is None:
            return None
        return Pace(self._batch_s, self._exchange_s, self._round_s, self.agreement)

    def begin_round(self) -> None:
        """Note that the first batch may begin."""
        if self._exchange_s is not None:
            self._round_s = self._computing_s + self._lap()
        self._at = time.perf_counter()

    def end_batches(self, count: int) -> None:
        """Note that so many batches are done."""
        self._batch_s = self._lap() / count

    def complete(self) -> None:
        """Note that everything is handed over."""
        self._computing_s = self._lap()

    def arrive(self) -> None:
        """Note that the means are there."""
        self._exchange_s = self._lap()

    def _lap(self) -> float:
        before, self._at = self._at, time.perf_counter()
        return self._at - before
