"""Whether a quick model waits for more requests, so that they run together."""

SURE_AFTER = 16
"""Runs in a row with one request each, after which its client counts as a lone one."""
PROBE_EVERY = 16
"""Of so many runs for a lone client, one waits all the same, to see whether there are more."""


class Linger:
    """Says whether a run waits until no more requests come.

    A run has a cost that does not depend on how many requests it answers, and the next requests of several clients come
    close to each other, since their answers did. A lone client has nobody to wait for.

    Plain Python without a clock or threads.
    """

    def __init__(self) -> None:
        self._alone = 0

    @property
    def is_worthwhile(self) -> bool:
        """Whether the next run is to wait."""
        return self._alone < SURE_AFTER or self._alone % PROBE_EVERY == 0

    def note_run(self, requests: int) -> None:
        """Learn how many requests a run had."""
        self._alone = self._alone + 1 if requests == 1 else 0
