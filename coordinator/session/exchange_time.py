"""What an exchange takes with each form of the moves, when only one of them is in use.

An exchange takes a part that does not depend on bytes (latency, and what is computed) and one that grows with them.
While one form alone was in use no more is known of the first part than what devices measure of it: the other form then
looks as cheap as it can be. Once both were measured, one after the other, their difference tells the two parts.
"""

from collections.abc import Mapping

from edgenewton.v1.forms import Form

from coordinator.session.running_mean import RunningMean

SETTLED = 4
"""So many exchanges are measured with a form before it counts as known: the first ones still have the past in them."""
_COMPARED = 8
"""Those of a form after a change are compared with those before it; later the link may be another."""


class ExchangeTime:
    """Seconds of an exchange, measured with one form at a time.

    Args:
        sizes: bytes of an exchange with each form; empty where there is no choice.

    """

    def __init__(self, sizes: Mapping[Form, int]) -> None:
        self._sizes = sizes
        self._form: Form | None = None
        self._mean = RunningMean()
        """With the form in use."""
        self._before: tuple[Form, float] | None = None
        """The form in use before it, and what an exchange took at the end."""
        self._known = RunningMean()
        """What devices measure of the part that does not depend on bytes."""
        self._fixed_s = 0.0
        """That part, as far as forms were compared."""

    @property
    def is_settled(self) -> bool:
        """Whether enough exchanges were measured with the form in use."""
        return self._mean.count >= SETTLED

    def measure(self, form: Form | None, seconds: float, fixed_s: float) -> None:
        """Take in an exchange.

        Args:
            form: of its moves; None where there is no choice.
            seconds: that it took.
            fixed_s: how many of these do not depend on bytes, as far as the device knows.

        """
        if form is not self._form:
            if self._form is not None and self._mean.count:
                self._before = self._form, self._mean.value
            self._form, self._mean = form, RunningMean()
        self._mean.add(seconds)
        self._known.add(fixed_s)
        if form is not None and self._before is not None and self._mean.count <= _COMPARED:
            self._compare(form, *self._before)

    def seconds(self, form: Form | None) -> float:
        """Return what an exchange takes with a form: as measured if it is in use, else as expected."""
        measured = self._mean.value
        if form is None or self._form is None or form is self._form:
            return measured
        fixed = min(measured, max(self._fixed_s, self._known.value))
        return fixed + (measured - fixed) * self._sizes[form] / self._sizes[self._form]

    def _compare(self, form: Form, other: Form, others: float) -> None:
        """Find the fixed part with which both forms take as long as was measured."""
        bytes_here, bytes_there = self._sizes[form], self._sizes[other]
        if bytes_here == bytes_there:
            return
        per_byte = (self._mean.value - others) / (bytes_here - bytes_there)
        fixed = self._mean.value - per_byte * bytes_here
        self._fixed_s = min(max(0.0, fixed), self._mean.value, others)
