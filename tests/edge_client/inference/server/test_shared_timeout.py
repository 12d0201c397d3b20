"""A time limit that many tasks share."""

import asyncio

import pytest

from edge_client.inference.server.shared_timeout import SharedTimeout


def test_each_task_has_the_same_time_from_its_own_beginning():
    async def scenario():
        limit, ended = SharedTimeout(0.3), []

        async def wait(name, event):
            try:
                with limit.limit():
                    await event.wait()
            except TimeoutError:
                ended.append(name)

        never, soon = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(wait("first", never))
        quick = asyncio.create_task(wait("quick", soon))
        await asyncio.sleep(0)
        soon.set()
        await quick
        assert len(limit) == 1
        second = asyncio.create_task(wait("second", never))
        await asyncio.gather(first, second)
        assert ended == ["first", "second"]
        assert len(limit) == 0
        await asyncio.create_task(wait("third", never))  # the timer is set again
        assert ended[-1] == "third"

    asyncio.run(scenario())


def test_a_task_that_somebody_else_cancels_is_cancelled():
    async def scenario():
        limit = SharedTimeout(30)

        async def wait():
            with limit.limit():
                await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert len(limit) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(limit) == 0

    asyncio.run(scenario())


def test_what_a_task_raises_itself_goes_through():
    async def scenario():
        limit = SharedTimeout(30)
        with pytest.raises(KeyError), limit.limit():
            raise KeyError
        assert len(limit) == 0

    asyncio.run(scenario())
