"""Whether a quick model waits for more requests, so that they run together."""

PROBE_EVERY = 256
"""Of so many runs, one waits until no more requests come, to see how many do."""
COMPANY_PROBE_EVERY = 64
"""The same where it is known that there are several."""


class Linger:
    """Says when enough requests have come for a run.

    A run has a cost that does not depend on how many requests it answers, and the next requests of several clients come
    close to each other, since their answers did. So a run waits for half as many as come together: the others come in
    while it is answered. A lone client has nobody to wait for. How many come together shows when a run waits until no
    more come, which one of many does.

    Plain Python without a clock or threads.
    """

    def __init__(self) -> None:
        self._together = 1
        self._runs = 0

    def is_enough(self, requests: int) -> bool:
        """Return whether a run is to start with so many requests, rather than to wait for more."""
        every = PROBE_EVERY if self._together == 1 else COMPANY_PROBE_EVERY
        return 2 * requests >= self._together and self._runs < every - 1

    def note_run(self, requests: int, *, until_quiet: bool) -> None:
        """Learn how many requests a run had, and whether it waited until no more came."""
        if until_quiet:
            # One pause does not mean that the others have gone.
            self._together = max(requests, self._together // 2)
            self._runs = 0
        else:
            self._together = max(requests, self._together)
            self._runs += 1
