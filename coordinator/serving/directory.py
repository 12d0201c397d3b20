"""The sessions of one coordinator, by name."""

from collections.abc import Iterator

from coordinator.session.refusal import RefusedError, Status
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings

MAX_FINISHED = 16
"""So many sessions that are over are remembered, so that a late device is told how its session ended."""


class SessionRegistry:
    """Creates sessions and finds them."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def create(self, name: str, settings: SessionSettings) -> Session:
        """Create a session; one of the same name that is over is replaced.

        Raises:
            ValueError: the name is empty.
            RefusedError: a session of this name is running.

        """
        if not name:
            raise ValueError("a session needs a name")
        existing = self._sessions.get(name)
        if existing is not None and not existing.is_over:
            raise RefusedError(Status.ALREADY_EXISTS, f"session {name!r} is running already")
        self._sessions.pop(name, None)
        finished = [session for session in self if session.is_over]
        for session in finished[: max(0, len(finished) - MAX_FINISHED + 1)]:
            del self._sessions[session.name]
        session = Session(name, settings)
        self._sessions[name] = session
        return session

    def find(self, name: str) -> Session:
        """Return the session of a name.

        Raises:
            RefusedError: there is none; the text lists those that there are.

        """
        session = self._sessions.get(name)
        if session is None:
            running = ", ".join(repr(s.name) for s in self if not s.is_over) or "none"
            raise RefusedError(
                Status.NOT_FOUND, f"session {name!r} does not exist; sessions on this coordinator: {running}"
            )
        return session
