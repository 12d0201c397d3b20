"""Failpoints: named places where a process dies at once if it was told so, to test what the others do.

`EDGENEWTON_FAILPOINT="before-apply@7"` kills the process (SIGKILL, nothing is cleaned up) when step 7 comes to the
place called before-apply; in a model store the number is the version's, and where a file is written it counts the files
that the process writes, from 1. A failpoint that is not armed costs one
comparison.
"""

import os
import signal

VARIABLE = "EDGENEWTON_FAILPOINT"

DEVICE_FAILPOINTS = ("before-send", "mid-send", "after-send", "after-receive", "before-apply", "after-apply")
COORDINATOR_FAILPOINTS = ("before-commit", "after-commit", "mid-broadcast")
STORE_FAILPOINTS = ("model-written", "manifest-written", "version-named", "serving-replaced", "old-versions-removed")
"""In the order in which a promotion comes to them."""
FILE_FAILPOINTS = ("file-half-written", "file-written", "previous-kept", "file-named")
"""In the order in which the writing of a file comes to them."""

_armed = os.environ.get(VARIABLE, "")


def arm(place: str) -> None:
    """Arm a failpoint, written as in the environment; "" for none."""
    global _armed
    _armed = place


def failpoint(name: str, number: int) -> None:
    """Die here if this failpoint is armed for this number."""
    if _armed and _armed == f"{name}@{number}":
        os.kill(os.getpid(), signal.SIGKILL)
