"""Whether a quick model waits for more requests, so that they run together."""

PROBE_EVERY = 256
"""Of so many runs, one waits until no more requests come, to see how many do."""


class Linger:
    """Says when enough requests have come for a run.

    A run has a cost that does not depend on how many requests it answers. The next requests of several clients come
    close to each other, since their answers did: it is cheaper to wait for as many as the last time. A lone client has
    nobody to wait for. How many there are shows when a run waits until no more come, which one of many does.

    Plain Python without a clock or threads.
    """

    def __init__(self) -> None:
        self._expected = 1
        self._runs = 0

    def is_enough(self, requests: int) -> bool:
        """Return whether a run is to start with so many requests, rather than to wait for more."""
        return requests >= self._expected and self._runs % PROBE_EVERY != PROBE_EVERY - 1

    def note_run(self, requests: int) -> None:
        """Learn how many requests a run had."""
        self._expected = requests
        self._runs += 1
