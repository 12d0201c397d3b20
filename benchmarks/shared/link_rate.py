"""How fast one direction of a link carries data: bits leave one after the other, of whichever connection they are."""

_PIECE_S = 0.002
"""About how long a piece takes to leave: shorter ones would cost more time than they take."""
_LEAST_BYTES, _MOST_BYTES = 512, 1 << 16


class LinkRate:
    """A token bucket that saves nothing: data leave at the rate, and none leave in advance.

    What leaves is computed from the end of what left before, not from when somebody woke up, so that late timers do not
    make the link slower than it is meant to be.

    Args:
        bit_s: bits that leave in a second; None for all at once.

    """

    def __init__(self, bit_s: float | None = None) -> None:
        if bit_s is not None and bit_s <= 0:
            raise ValueError(f"a link carries more than {bit_s:g} bit/s")
        self._bit_s = bit_s
        self._free_at = 0.0

    @property
    def piece_bytes(self) -> int:
        """How many bytes are to leave as one piece: those behind them on the link come that much later."""
        if self._bit_s is None:
            return _MOST_BYTES
        return min(_MOST_BYTES, max(_LEAST_BYTES, int(self._bit_s / 8 * _PIECE_S)))

    def leave(self, count: int, now: float) -> float:
        """Return when the last of so many bytes has left that are there at `now`."""
        if self._bit_s is None:
            return now
        self._free_at = max(self._free_at, now) + 8 * count / self._bit_s
        return self._free_at
