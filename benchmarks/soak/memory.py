"""The memory of processes while they work, and how much it grows once they are warm."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

SHARE = 0.15
"""The growth is between the means over this share of the time after the warm-up, at its beginning and at its end."""


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB.

    Raises:
        OSError: there is no such process.

    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has ended")


def growth(samples: Sequence[tuple[float, float]], warm_up_s: float) -> float:
    """Return by which part memory has grown after the warm-up; negative if it has shrunk.

    Args:
        samples: seconds and MiB, in order.
        warm_up_s: seconds that do not count.

    Raises:
        ValueError: there are no samples after the warm-up.

    """
    warm = [sample for sample in samples if sample[0] >= warm_up_s]
    if not warm:
        raise ValueError(f"no sample of memory was taken after the warm-up of {warm_up_s:g} s")
    begin, end = warm[0][0], warm[-1][0]
    length = SHARE * (end - begin)
    first = fmean(mib for at, mib in warm if at <= begin + length)
    last = fmean(mib for at, mib in warm if at >= end - length)
    return last / first - 1


class MemoryWatch:
    """Samples the memory of processes in a thread until it is stopped.

    Args:
        pids: of the processes, by name.
        every_s: seconds between samples.

    """

    def __init__(self, pids: Mapping[str, int], every_s: float) -> None:
        self.samples: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
        """Of each process seconds since the beginning and MiB."""
        self._pids = dict(pids)
        self._every_s = every_s
        self._began = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            for name, pid in self._pids.items():
                try:
                    self.samples[name].append((time.monotonic() - self._began, resident_mib(pid)))
                except OSError:
                    return  # whoever runs the processes says how they ended
            self._is_over.wait(self._every_s)
