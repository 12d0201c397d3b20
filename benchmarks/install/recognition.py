"""A server of an environment that only recognises: how long it takes to start, and how much memory."""

import http.client
import json
import os
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.shared.ports import free_port

REQUESTS = 200
_START_DEADLINE_S = 60.0


class Start(NamedTuple):
    """One start of the server."""

    seconds: float
    """From the command to the first answer, which is right."""
    cpu_s: float
    """Processor time until then: what `seconds` is on a machine that does nothing else, about."""
    rss_mb: float
    """Most memory that the process had, after the requests, MB (10^6 bytes)."""


def start_server(programs: Path, model: Path, sample: Path, label: str) -> Start:
    """Start `edge-client serve` with a model, ask it, and end it.

    Raises:
        RuntimeError: it does not answer, or answers another label.

    """
    port, content = free_port(), sample.read_bytes()
    began = time.perf_counter()
    server = subprocess.Popen(
        [programs / "edge-client", "serve", model, "--rest-port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        answer = _first_answer(server, port, content, began + _START_DEADLINE_S)
        seconds, cpu_s = time.perf_counter() - began, _cpu_s(server.pid)
        if answer != label:
            raise RuntimeError(f"the server answered {answer!r}, not {label!r}")
        for _ in range(REQUESTS):
            _ask(port, content)
        status = Path(f"/proc/{server.pid}/status").read_text()
        (peak_kib,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
        return Start(seconds, cpu_s, int(peak_kib) * 1024 / 1e6)
    finally:
        server.terminate()
        server.wait(30)


def median_start(starts: list[Start]) -> Start:
    """Return the medians."""
    return Start(*(statistics.median(values) for values in zip(*starts, strict=True)))


def _first_answer(server: "subprocess.Popen[bytes]", port: int, content: bytes, deadline: float) -> str:
    while time.perf_counter() < deadline and server.poll() is None:
        try:
            return _ask(port, content)
        except OSError:
            time.sleep(0.005)
    raise RuntimeError(f"the server does not answer; it ended with {server.poll()}")


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime; proc(5)


def _ask(port: int, content: bytes) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/recognize", content)
        return str(json.loads(connection.getresponse().read())["label"])
    finally:
        connection.close()
