"""Calls over gRPC that begin and send nothing: they end at their time limit, and others are answered."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "support" / "silent_calls.py"


def test_calls_without_a_message_end_and_hold_nothing():
    path = os.pathsep.join(filter(None, [str(Path.cwd()), str(Path.cwd() / "proto"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.stdout.splitlines() == [
        "DEADLINE_EXCEEDED the request did not come within 0.5 s",
        "DEADLINE_EXCEEDED the request did not come within 0.5 s",
        "INVALID_ARGUMENT the request has no message",
        "UNIMPLEMENTED",
        "live True",
        "memory 0",
    ], done.stderr
