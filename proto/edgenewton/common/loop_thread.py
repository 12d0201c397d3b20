"""An event loop in a thread of its own, for programs that are not asynchronous themselves."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_STOP_DEADLINE_S = 5.0

T = TypeVar("T")

_idle: list[asyncio.AbstractEventLoop] = []
"""Loops that were stopped, for the next threads. None is closed: gRPC's poller, which all loops share, knows each for
ever, and may still call into it."""
os.register_at_fork(after_in_child=_idle.clear)


def _idle_loop() -> asyncio.AbstractEventLoop:
    try:
        return _idle.pop()
    except IndexError:
        return asyncio.new_event_loop()


class LoopThread:
    """Runs coroutines for other threads until it is stopped.

    Args:
        name: of the thread.

    """

    def __init__(self, name: str) -> None:
        self._loop = _idle_loop()
        self._is_stopped = False
        """Another thread may run the loop then."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine and return what it gives, or raise what it raises.

        Raises:
            RuntimeError: the thread was stopped.
            TimeoutError: it took longer than `timeout_s`; it is cancelled.

        """
        if self._is_stopped:
            coroutine.close()
            raise RuntimeError("the loop's thread was stopped")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def call_soon(self, function: Callable[[], object]) -> None:
        """Let the loop call a function, unless it was stopped; returns at once."""
        if self._is_stopped:
            return
        self._loop.call_soon_threadsafe(function)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Let the loop run a coroutine, unless it was stopped; returns at once."""
        if self._is_stopped:
            coroutine.close()
            return
        self._loop.call_soon_threadsafe(self._start, coroutine)

    async def cancel_tasks(self) -> None:
        """End what `spawn` has started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """End the loop, what still runs on it, and the thread; a second time nothing is left to end."""
        if self._is_stopped:
            return
        with contextlib.suppress(TimeoutError):
            self.call(self._cancel_all(), _STOP_DEADLINE_S)
        self._is_stopped = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_DEADLINE_S)
        if not self._thread.is_alive():
            _idle.append(self._loop)

    async def _cancel_all(self) -> None:
        """End all tasks, also gRPC's own: one that is left would complain when it is destroyed, at any time."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_DEADLINE_S / 2)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
