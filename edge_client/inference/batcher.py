"""Dynamic batching: requests that come while the model is busy are answered together, in its next run.

An idle model starts at once, so that batching costs a lone request nothing. The model runs in a thread of its own,
samples are decoded in others, and the event loop stays free; only a model that has proved quicker than a change of
threads runs on the event loop itself.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from edge_client.inference.errors import DeadlineError, RequestError, TooLargeError, UnavailableError
from edge_client.inference.queue import BatchQueue, Waiting
from edge_client.inference.recognizer import Recognizer

log = logging.getLogger(__name__)

DECODERS = 2
"""Threads that decode images and sounds."""
QUICK_S = 0.001
"""A model whose runs take less runs on the event loop."""
_FADING = 0.9
"""Weight of the past in how long a run takes."""


@dataclass(frozen=True)
class Serving:
    """A model that answers, and which version of it."""

    version: int
    recognizer: Recognizer


@dataclass(frozen=True)
class Answer:
    """Probabilities `[n, labels]`, all of one version."""

    probabilities: Tensor
    serving: Serving


@dataclass(frozen=True)
class BatchReport:
    """How a run of the model went, for metrics."""

    requests: int
    samples: int
    seconds: float


@dataclass(eq=False)
class _Request(Waiting):
    answer: "asyncio.Future[Answer]" = field(kw_only=True)


class Batcher:
    """Answers requests with whatever model serves when their turn comes. Use it on one running event loop.

    Args:
        max_batch: samples in a run of the model at most; a larger request is refused.
        max_waiting: samples that wait at most; a request beyond it is refused at once.
        on_batch: told of each run.
        quick_s: a model whose runs take less runs on the event loop.

    """

    def __init__(
        self,
        max_batch: int,
        max_waiting: int,
        on_batch: Callable[[BatchReport], None] = lambda _: None,
        quick_s: float = QUICK_S,
    ) -> None:
        self.queue: BatchQueue[_Request] = BatchQueue(max_batch, max_waiting)
        self.serving: Serving | None = None
        """The model that the next batch runs on; assign to swap it."""
        self._on_batch = on_batch
        self._quick_s = quick_s
        self._typical_s = math.inf
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._is_busy = False
        self._is_scheduled = False
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, raw: Tensor | Callable[[], Tensor], samples: int, timeout_s: float) -> Answer:
        """Wait for the answer to a request.

        Args:
            raw: decoded samples `[samples, *raw_shape]`, or what decodes them; that runs in another thread.
            samples: how many there are.
            timeout_s: seconds that the answer may take.

        Raises:
            RequestError: it was not answered; see its subclasses.
            SampleError: its samples cannot be used.

        """
        if self._is_draining:
            raise UnavailableError("the server stops")
        if self.serving is None:
            raise UnavailableError("there is no model yet; train one, or put one into the model store")
        if samples > self.queue.max_batch:
            raise TooLargeError(f"the request has {samples} samples; {self.queue.max_batch} are the limit")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        request = _Request(samples, deadline, answer=loop.create_future())
        self.queue.add(request)
        self._idle.clear()
        try:
            async with asyncio.timeout_at(deadline):
                request.raw = raw if isinstance(raw, Tensor) else await loop.run_in_executor(self._decoders, raw)
                self._schedule()
                return await request.answer
        except TimeoutError:
            raise DeadlineError(f"the request was not answered within {timeout_s:g} s") from None
        finally:
            self.queue.discard(request)  # it was cancelled, is too late, or cannot be decoded
            self._note_idle()

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests, and answer those that wait; what is left after `timeout_s` is refused."""
        self._is_draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            for request in self.queue.clear():
                self._fail(request, UnavailableError("the server stops"))
        self._model_thread.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _schedule(self) -> None:
        # At the end of the event loop's turn, so that requests that arrived together run together.
        if not self._is_busy and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start_next)

    def _start_next(self) -> None:
        self._is_scheduled = False
        loop = asyncio.get_running_loop()
        taken = self.queue.take(loop.time())
        for request in taken.expired:
            self._fail(request, DeadlineError("the request's time was over before its turn came"))
        if not taken.batch or self.serving is None:
            self._note_idle()
            return
        self._is_busy = True
        if self._typical_s < self._quick_s:
            quick: Future[Answer] = Future()
            try:
                quick.set_result(self._run(self.serving, taken.batch))
            except Exception as error:  # whatever the model raises is handed back, as from the thread
                quick.set_exception(error)
            self._finish(taken.batch, quick)
            return
        future = self._model_thread.submit(self._run, self.serving, taken.batch)
        future.add_done_callback(partial(self._hand_back, loop, taken.batch))

    def _run(self, serving: Serving, batch: list[_Request]) -> Answer:
        began = time.perf_counter()
        parts = [request.raw for request in batch if request.raw is not None]
        raw = parts[0] if len(parts) == 1 else torch.cat(parts)
        answer = Answer(serving.recognizer.probabilities(raw), serving)
        seconds = time.perf_counter() - began
        past = self._typical_s if math.isfinite(self._typical_s) else seconds
        self._typical_s = _FADING * past + (1 - _FADING) * seconds
        self._on_batch(BatchReport(len(batch), len(raw), seconds))
        return answer

    def _hand_back(self, loop: asyncio.AbstractEventLoop, batch: list[_Request], done: "Future[Answer]") -> None:
        with contextlib.suppress(RuntimeError):  # the event loop was closed while the model ran
            loop.call_soon_threadsafe(self._finish, batch, done)

    def _finish(self, batch: list[_Request], done: "Future[Answer]") -> None:
        self._is_busy = False
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            log.error("a batch of %d requests failed", len(batch), exc_info=error)
            for request in batch:
                self._fail(request, RequestError(f"the model failed: {error}"))
        else:
            answer, place = done.result(), 0
            for request in batch:
                rows = answer.probabilities[place : place + request.samples]
                place += request.samples
                if not request.answer.done():
                    request.answer.set_result(Answer(rows, answer.serving))
        self._schedule()

    def _fail(self, request: _Request, error: RequestError) -> None:
        if not request.answer.done():
            request.answer.set_exception(error)

    def _note_idle(self) -> None:
        if not self._is_busy and not self._is_scheduled and not len(self.queue):
            self._idle.set()
