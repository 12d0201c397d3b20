"""A session whose caller combines each step as soon as it closes, as a room does with small ones."""

from coordinator.session.decisions import Decision, StepClosing
from coordinator.session.session import Session


class AtOnceSession(Session):
    """Leaves no step closing."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._taken: list[Decision] = []

    def advance(self, now: float) -> None:
        super().advance(now)
        if self.is_closing:
            *before, closing = super().take_decisions()
            assert isinstance(closing, StepClosing)
            self._taken += before
            self.combined(closing.combine(), now)

    def take_decisions(self) -> list[Decision]:
        taken, self._taken = self._taken, []
        return taken + super().take_decisions()
