"""What comes in calls is read here: within a time, within the limits of its message, and off the loop if it is large.

The event loop serves all devices. Reading a large message takes milliseconds, which others would wait; a thread reads
it, and its sender's next message waits for it.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import grpc
from edgenewton.v1.limits import Limits

from coordinator.identity.limits import IdentityLimits
from coordinator.session.refusal import RefusedError, Status

SMALL_BYTES = 64 << 10
"""Requests up to this size are read at once: handing one to a thread takes longer than to read it."""
THREADS = 2
MAX_WAITING = 1_024
"""Calls of one caller whose request has not come yet."""

_Context = grpc.aio.ServicerContext[Any, Any]
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Intake:
    """Reads the messages of one coordinator's calls.

    Args:
        limits: of each caller.

    """

    def __init__(self, limits: IdentityLimits) -> None:
        self._limits = limits
        self._waiting: Counter[str] = Counter()
        self._readers: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(THREADS, "intake")

    def close(self) -> None:
        """End the threads; nobody waits for what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def work(self, is_large: bool, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return what a function makes of a message; for one that takes long it runs in a thread."""
        if not is_large:
            return function(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def request(self, requests: AsyncIterator[bytes], context: _Context) -> bytes:
        """Return the one message of a call that has one.

        Raises:
            RefusedError: it did not come in time, or the caller has too many calls whose message has not come.

        """
        host = _host(context)
        if self._waiting[host] >= MAX_WAITING:
            raise RefusedError(
                Status.RESOURCE_EXHAUSTED, f"{MAX_WAITING} calls from {host} have sent no request yet; more are refused"
            )
        with _counted(self._waiting, host):
            try:
                async with asyncio.timeout(self._limits.request_s):
                    return await anext(requests)
            except TimeoutError:
                raise RefusedError(
                    Status.DEADLINE_EXCEEDED, f"the request did not come within {self._limits.request_s:g} s"
                ) from None
            except StopAsyncIteration:
                raise RefusedError(Status.INVALID_ARGUMENT, "the call ended without a request") from None

    async def read(self, limits: Limits[Any], data: bytes) -> Any:
        """Return a message.

        Raises:
            LimitError: it is none, or a field is out of its range.

        """
        return await self.work(len(data) > SMALL_BYTES, limits.parse, data)

    async def send(self, context: _Context, responses: AsyncIterator[bytes]) -> None:
        """Send a stream of messages to a caller that must take each in time.

        Raises:
            RefusedError: it does not, or it has too many such streams.

        """
        host = _host(context)
        if self._readers[host] >= self._limits.readers:
            raise RefusedError(
                Status.RESOURCE_EXHAUSTED,
                f"{host} reads {self._limits.readers} streams already, which is as many as it may",
            )
        with _counted(self._readers, host):
            async for response in responses:
                try:
                    async with asyncio.timeout(self._limits.reader_s):
                        await context.write(response)
                except TimeoutError:
                    raise RefusedError(
                        Status.RESOURCE_EXHAUSTED,
                        f"the stream was not read for {self._limits.reader_s:g} s; read it faster, or begin anew",
                    ) from None


@contextmanager
def _counted(counter: Counter[str], name: str) -> Iterator[None]:
    counter[name] += 1
    try:
        yield
    finally:
        counter[name] -= 1
        if not counter[name]:
            del counter[name]


def _host(context: _Context) -> str:
    """Return the address that calls, without the port, which differs for each connection."""
    return str(context.peer()).rpartition(":")[0] or str(context.peer())
