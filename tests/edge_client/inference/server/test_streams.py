"""Streams that bring nothing, and clients that take no answers, end; what they took is free again."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "support" / "short_streams.py"


def test_idle_and_stalled_streams_end_and_others_go_on():
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout.splitlines() == [
        "idle DEADLINE_EXCEEDED no request came for 1 s; open another stream",
        "greedy has lost its stream",
        "ordinary [2, 2] OK ",
        "counted 0",
    ], run.stderr
    assert "Traceback" not in run.stderr
