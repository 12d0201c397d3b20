"""How far a run is, as people read it: batches a second over the last minute, the time left, the best accuracy."""

import math
from collections import deque
from typing import NamedTuple

WINDOW_S = 60.0
"""Seconds of training that the rate is taken from, or more for a few exchanges; pauses are not among them."""
PAUSE_S = 15.0
"""After so many seconds without a batch, and ten times as long as usual, a run pauses: that time tells nothing of its
rate."""
_MANY_TIMES = 10
_APART_S = 0.25
_KNOWN_S = 2.0
_KNOWN_TIMES = 5
"""The rate is known after so many seconds and exchanges."""


class Best(NamedTuple):
    """The best accuracy so far."""

    step: int
    accuracy: float


def better(best: Best | None, step: int, accuracy: float) -> Best:
    """Return the better of the best so far and another accuracy; of equal ones the first."""
    return Best(step, accuracy) if best is None or accuracy > best.accuracy else best


class _Mark(NamedTuple):
    active_s: float
    batches: int
    times: int


class Pace:
    """The rate of a run's batches. Memory is bounded, however fast they come."""

    def __init__(self) -> None:
        self._last_at: float | None = None
        self._now = _Mark(0.0, 0, 0)
        """Seconds without pauses, batches, and times that some came, since the first."""
        self._marks = deque([self._now])
        """Earlier values of it, at most a window and a mark long."""

    def add(self, batches: int, now: float) -> None:
        """Take note of batches that are done at a time, in seconds."""
        last_at, self._last_at = self._last_at, now
        if last_at is None or now - last_at > self._pause_s():
            return  # when they began is not known
        active_s, done, times = self._now
        self._now = _Mark(active_s + max(0.0, now - last_at), done + batches, times + 1)
        if self._now.active_s >= self._marks[-1].active_s + _APART_S:
            self._marks.append(self._now)
        while len(self._marks) > 1 and self._is_old(self._marks[1]):
            self._marks.popleft()

    def per_s(self, now: float) -> float | None:
        """Return batches per second; None until that is known, and while the run pauses."""
        if self._last_at is None or now - self._last_at > self._pause_s():
            return None
        seconds, batches, times = self._span()
        return batches / seconds if seconds >= _KNOWN_S and times >= _KNOWN_TIMES else None

    def _is_old(self, mark: _Mark) -> bool:
        """Whether there is enough after a mark to take the rate from."""
        return self._now.active_s - mark.active_s >= WINDOW_S and self._now.times - mark.times >= _KNOWN_TIMES

    def _span(self) -> _Mark:
        now, begin = self._now, self._marks[0]
        return _Mark(now.active_s - begin.active_s, now.batches - begin.batches, now.times - begin.times)

    def _pause_s(self) -> float:
        seconds, _, times = self._span()
        return max(PAUSE_S, _MANY_TIMES * seconds / times) if times else math.inf


def seconds_left(done: int, run_steps: int | None, per_s: float | None) -> float | None:
    """Return the seconds until the end of a run of so many steps; None if that is not known."""
    if run_steps is None or not per_s:
        return None
    return max(0, run_steps - done) / per_s


def progress_text(done: int, run_steps: int | None, per_s: float | None, best: Best | None) -> str:
    """Return how far a run is.

    Args:
        done: steps of each device, of a batch each.
        run_steps: steps of the whole run; None if that is not known.
        per_s: batches per second; None if that is not known.
        best: the best accuracy; None if there is none.

    """
    left_s = seconds_left(done, run_steps, per_s)
    parts = [f"step {done:,}" if run_steps is None else f"step {done:,} of {run_steps:,}"]
    if left_s:
        parts.append(f"{duration_text(left_s)} left")
    if per_s:
        parts.append(rate_text(per_s))
    if best is not None:
        parts.append(f"best accuracy {best.accuracy:.1%} at step {best.step:,}")
    return ", ".join(parts)


def rate_text(per_s: float) -> str:
    """Return a rate with two digits or more."""
    if per_s < 0.1:
        return f"{60 * per_s:.2g} batches/min"
    return (
        f"{per_s:.2f} batches/s"
        if per_s < 1
        else f"{per_s:.1f} batches/s"
        if per_s < 100
        else f"{per_s:,.0f} batches/s"
    )


def duration_text(seconds: float) -> str:
    """Return a duration in one unit or two."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{minutes // 60} h {minutes % 60} min"
