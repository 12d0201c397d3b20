"""Release policies: when the results of a step's slices leave for the devices."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Set

from edgenewton.v1.framing import SliceKey


class ReleasePolicy(ABC):
    """Says which slices of the step that is on are ready."""

    @abstractmethod
    def ready(
        self, waiting: Mapping[SliceKey, Set[str]], members: Collection[str], *, is_closing: bool
    ) -> list[SliceKey]:
        """Return the slices to release now.

        Args:
            waiting: the slices that were not released yet, with the devices that have contributed to them.
            members: the devices that the step waits for; there is at least one.
            is_closing: all of them have contributed everything, and the step is about to commit.

        """


class SliceBySlice(ReleasePolicy):
    """Each slice as soon as all members have contributed to it, while others are still under way."""

    def ready(
        self,
        waiting: Mapping[SliceKey, Set[str]],
        members: Collection[str],
        *,
        is_closing: bool,  # noqa: ARG002
    ) -> list[SliceKey]:
        """Return the slices that all members have contributed to."""
        needed = set(members)
        return [key for key, contributors in waiting.items() if needed <= contributors]


class PerStep(ReleasePolicy):
    """All slices together, once the step commits: for sums of which no part may leave before who is in is certain."""

    def ready(
        self, waiting: Mapping[SliceKey, Set[str]], members: Collection[str], *, is_closing: bool
    ) -> list[SliceKey]:
        """Return all slices if the step is about to commit."""
        return SliceBySlice().ready(waiting, members, is_closing=True) if is_closing else []


RELEASES: Mapping[str, ReleasePolicy] = {"slice": SliceBySlice(), "step": PerStep()}
"""All policies, by the name that a session chooses them by."""
