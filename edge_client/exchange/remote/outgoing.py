"""The frames of the step that is on, kept until the next one begins: a new stream sends them again."""


class Outgoing:
    """Who uses it holds the lock of the link."""

    def __init__(self) -> None:
        self.step = 0
        self._frames: list[bytes] = []
        self._sent = 0
        self._is_complete = False

    @property
    def is_sent(self) -> bool:
        """Whether all of the step has been sent."""
        return self._is_complete and self._sent == len(self._frames)

    def begin(self, step: int) -> None:
        """Forget the frames of the step before."""
        self.step = step
        self._frames, self._sent, self._is_complete = [], 0, False

    def add(self, frame: bytes, *, is_last: bool) -> None:
        """Add a frame of the step that is on."""
        self._frames.append(frame)
        self._is_complete = is_last

    def rewind(self) -> None:
        """Send everything again."""
        self._sent = 0

    def take(self) -> bytes | None:
        """Return the next frame to send, if there is one."""
        if self._sent == len(self._frames):
            return None
        self._sent += 1
        return self._frames[self._sent - 1]
