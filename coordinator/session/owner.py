"""The lease of whoever opened a session: without a sign of life from them it is not to run on."""


class OwnerLease:
    """Ends when nothing was heard for a time.

    Args:
        lease_s: the time; None for a session that needs nobody.

    """

    def __init__(self, lease_s: float | None) -> None:
        self._lease_s = lease_s
        self._heard_at: float | None = None

    def hear(self, now: float) -> None:
        """Take a sign of life."""
        self._heard_at = now

    def ended(self, now: float) -> str | None:
        """Return why the session is to end, if it is; the lease begins with the first call."""
        if self._lease_s is None:
            return None
        if self._heard_at is None:
            self._heard_at = now
        if now < self._heard_at + self._lease_s:
            return None
        return f"nothing was heard for {self._lease_s:g} s from the run that opened it"
