"""Clients that go away before they are answered: their requests are given up."""

import asyncio
from types import TracebackType

from fastapi import Request
from starlette.requests import ClientDisconnect

_PATIENCE_S = 0.05
"""Seconds that most answers need less than."""


class Watch:
    """Gives the wait of the current task up when the request's client goes away; ClientDisconnect is raised then."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._is_gone = False
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        # Most answers come before it would be worth the while to look after the client.
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        # Somebody else may have cancelled the task, too; then it ends.
        if self._is_gone and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise ClientDisconnect from error

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch(), name="disconnection")

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()
