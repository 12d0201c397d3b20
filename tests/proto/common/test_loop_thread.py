"""Event loops in threads of their own, one after the other."""

import asyncio
import threading
from pathlib import Path

import pytest
from edgenewton.common.loop_thread import LoopThread

from coordinator.serving.server import embedded_coordinator
from edge_client import GradientExchange


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_coordinators_and_exchanges_that_come_and_go_leave_no_files_open():
    """Each used to leave a loop with three: a process that joined a few hundred sessions had no files left."""

    def once():
        with embedded_coordinator() as coordinator:
            GradientExchange.connect(coordinator.address, session="s", device="d").close()

    once()
    before = open_files()
    for _ in range(10):
        once()
    assert open_files() <= before + 3


def test_threads_at_one_time_have_loops_of_their_own():
    threads = [LoopThread(f"loop {number}") for number in range(3)]

    async def running():
        return asyncio.get_running_loop(), threading.current_thread().name

    found = [thread.call(running(), 5) for thread in threads]
    assert len({id(loop) for loop, _ in found}) == 3
    for thread in threads:
        thread.stop()
    after = LoopThread("after")
    loop, name = after.call(running(), 5)
    assert name == "after"
    assert any(loop is earlier for earlier, _ in found)
    after.stop()


def test_a_stopped_thread_does_nothing_on_the_loop_that_another_has_by_then():
    first, called = LoopThread("first"), []
    first.stop()
    second = LoopThread("second")
    first.stop()
    first.call_soon(lambda: called.append("first"))

    async def note(name):
        called.append(name)

    first.spawn(note("spawned"))
    with pytest.raises(RuntimeError, match="was stopped"):
        first.call(note("called"), 5)
    second.call(note("second"), 5)
    assert called == ["second"]
    second.stop()


def test_what_still_runs_is_ended():
    thread, ended = LoopThread("loop"), threading.Event()

    async def endless():
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()

    thread.spawn(endless())
    thread.call_soon(lambda: None)
    thread.stop()
    assert ended.is_set()
