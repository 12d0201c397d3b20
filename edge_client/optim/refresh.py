"""In which steps the curvature is renewed."""

from edge_client.curvature.schedule import is_on_log_schedule
from edge_client.optim.options import Refresh

_MOST_KNOWN = 16


class RefreshSchedule:
    """Counts from the first step of the curvature on: one that begins in the middle of a session warms up there."""

    def __init__(self, options: Refresh) -> None:
        self.began_at: int | None = None
        """The first step of the curvature; None before it."""
        self._options = options
        self._known: dict[tuple[int, int], bool] = {}
        """What was found, by step counted from the first and interval: each layer asks in every batch."""

    def begin(self, step: int) -> None:
        """Note that the curvature begins, unless it has begun."""
        if self.began_at is None:
            self.began_at = step

    def updates_factors(self, step: int) -> bool:
        """Whether a step updates the curvature statistics."""
        return self._is_due(step, self._options.factor_every)

    def inverts(self, step: int) -> bool:
        """Whether a step inverts the curvature."""
        return self._is_due(step, self._options.inverse_every)

    def _is_due(self, step: int, every: int) -> bool:
        key = step - (self.began_at or 0), every
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._find(*key)
        return self._known[key]

    def _find(self, number: int, every: int) -> bool:
        warmup, growth = self._options.warmup_steps, self._options.growth
        if growth > 1:
            return is_on_log_schedule(number, growth, max(warmup, 1), every)
        return number < warmup or (number - warmup) % every == 0
