"""The priority of training beside recognition."""

import contextlib
import os

LOWEST = 19


def lower_priority(nice: int) -> None:
    """Give the current thread, and those that it will begin, a lower priority.

    With the lowest one the system's scheduler counts it as idle (sched(7), SCHED_IDLE), where there is such a policy:
    whoever else wants the processor has it at once. A thread that is only nice keeps it for the rest of its time slice,
    some milliseconds, for which a request would wait.

    Args:
        nice: how much lower, 0 to `LOWEST`.

    """
    os.nice(nice)
    if nice == LOWEST and hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
