"""One engine in a process of its own: prints as JSON how large, quick and small it is. See `engines.py`."""

import json
import os
import statistics
import sys
import time
from pathlib import Path


def process_age_s() -> float:
    """Return for how long this process has been running."""
    # Field 22 of proc(5)'s stat, the start in ticks since the machine's; the name before it may hold spaces.
    started = int(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def main(path: Path, engine: str, seconds: float) -> None:
    """Recognise one sample again and again."""
    from edge_client.inference import Recognizer

    recognizer = Recognizer.load(path, engine or None, threads=1)  # type: ignore[arg-type]
    raw = recognizer.info.blank(1)
    recognizer.probabilities(raw)
    start = process_age_s()
    for _ in range(200):
        recognizer.probabilities(raw)
    latencies, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        recognizer.probabilities(raw)
        latencies.append(time.perf_counter() - began)
    percentiles = statistics.quantiles(latencies, n=100)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    measured = {
        "file_kb": path.stat().st_size / 1e3,
        "start_s": start,
        "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "p50_us": 1e6 * statistics.median(latencies),
        "p99_us": 1e6 * percentiles[98],
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
