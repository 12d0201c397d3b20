"""Combines a session's closed step beside the event loop, which serves the other sessions meanwhile.

A robust rule looks at all that all devices have sent: milliseconds to seconds. Until its outcome is there the session
takes nothing in, so that a step is what it would be if it were combined in no time: what devices send and ask waits,
and so do leaves and deadlines. The threads are the session's own; no other one waits for them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from coordinator.session.decisions import StepClosing
from coordinator.session.robust import StepOutcome

log = logging.getLogger(__name__)

LARGE_ELEMENTS = 200_000
"""Elements that take a rule about a millisecond; fewer are combined at once."""
SLICE_ELEMENTS = 800
"""So many elements take as long as one device's slice of few."""


def is_large(closing: StepClosing) -> bool:
    """Whether a step may take so long to combine that other sessions should not wait for it."""
    return closing.elements + SLICE_ELEMENTS * closing.slices > LARGE_ELEMENTS


class Combining:
    """The step of one session that is being combined, and what waits for it. Use it on one event loop.

    Args:
        done: given an outcome, or what went wrong instead.

    """

    def __init__(self, done: Callable[[StepOutcome | Exception], None]) -> None:
        self._done = done
        self._thread: ThreadPoolExecutor | None = None
        self._running: asyncio.Task[None] | None = None
        self._later: deque[Callable[[], object]] = deque()
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def is_running(self) -> bool:
        """Whether a step is being combined."""
        return self._running is not None

    def begin(self, closing: StepClosing) -> None:
        """Combine a large step; the loop goes on."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "combining")
        self._settled.clear()
        self._running = asyncio.get_running_loop().create_task(self._combine(closing, self._thread))

    async def settled(self) -> None:
        """Wait until no step is being combined."""
        while self.is_running:
            await self._settled.wait()

    def do(self, act: Callable[[], object]) -> None:
        """Do something now, or once no step is being combined."""
        if self.is_running:
            self._later.append(act)
        else:
            act()

    def close(self) -> None:
        """Combine nothing any more; nobody waits for what is under way, and its outcome counts no more."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        if self._running is not None:
            self._running.cancel()
            self._later.clear()
            self._settle()

    async def _combine(self, closing: StepClosing, thread: ThreadPoolExecutor) -> None:
        outcome: StepOutcome | Exception
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(thread, closing.combine)
        except Exception as error:
            outcome = error
        self._running = None
        try:
            self._done(outcome)
        finally:  # whatever goes wrong, nobody waits for ever
            if not self.is_running:
                self._settle()

    def _settle(self) -> None:
        self._running = None
        self._settled.set()
        while self._later and not self.is_running:
            self._later.popleft()()
