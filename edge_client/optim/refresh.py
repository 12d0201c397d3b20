"""In which steps the curvature is renewed."""

from edge_client.curvature.schedule import ever_farther
from edge_client.optim.options import Refresh


class RefreshSchedule:
    """Counts from the first step of the curvature on: one that begins in the middle of a session warms up there."""

    def __init__(self, options: Refresh) -> None:
        self.began_at: int | None = None
        """The first step of the curvature; None before it."""
        self._factors = _Steps(options, options.factor_every)
        self._inverses = _Steps(options, options.inverse_every)

    def begin(self, step: int) -> None:
        """Note that the curvature begins, unless it has begun."""
        if self.began_at is None:
            self.began_at = step

    def updates_factors(self, step: int) -> bool:
        """Whether a step updates the curvature statistics."""
        return self._factors.are_due(step - (self.began_at or 0))

    def inverts(self, step: int) -> bool:
        """Whether a step inverts the curvature."""
        return self._inverses.are_due(step - (self.began_at or 0))


class _Steps:
    """Which steps something is done in, counted from the first."""

    def __init__(self, options: Refresh, every: int) -> None:
        self._every = every
        self._warmup = options.warmup_steps
        begins = max(self._warmup - 1, 0) if options.growth > 1 else self._warmup
        numbers = ever_farther(options.growth, begins, every) if options.growth > 1 else [begins]
        self._growing = frozenset(numbers)
        self._last = numbers[-1]
        """After it they are equally far apart."""

    def are_due(self, number: int) -> bool:
        """Whether it is done in a step."""
        if number < self._last:
            return number < self._warmup or number in self._growing
        return (number - self._last) % self._every == 0
