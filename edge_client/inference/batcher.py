"""Dynamic batching: requests that come while the model is busy are answered together, in its next run.

An idle model starts at once, so that batching costs a lone request nothing. The model runs in a thread of its own,
samples are decoded in others, and the event loop stays free; only a model that has proved quicker than a change of
threads runs on the event loop itself. While that one runs, no requests can come: with several clients, it waits first.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_client.inference.errors import DeadlineError, RequestError, TooLargeError, UnavailableError
from edge_client.inference.linger import Linger
from edge_client.inference.queue import BatchQueue, Waiting
from edge_client.inference.recognizer import Probabilities, Recognizer, ensure_finite, is_finite
from edge_client.inference.statistics import Statistics
from edge_client.tasks.errors import SampleError, TaskError

log = logging.getLogger(__name__)

DECODERS = 2
"""Threads that decode images and sounds."""
QUICK_S = 0.001
"""A model whose runs take less runs on the event loop."""
QUIET_TURNS = 8
"""A model that waits for more requests runs when the event loop has brought none in so many turns; a request takes
about as many from the connection to here."""
LINGER_S = 0.01
"""It waits no longer than that."""
_STOPS = "the server stops"
_FADING = 0.9
"""Weight of the past in how long a run takes."""
_OUTLIER = 4.0
"""A run counts as no longer than so many times the usual: others may have had the processor meanwhile."""


@dataclass(frozen=True)
class Serving:
    """A model that answers, and which version of it."""

    version: int
    recognizer: Recognizer
    statistics: Statistics = field(default_factory=Statistics)


class Answer(NamedTuple):
    """Probabilities `[n, labels]`, all of one version."""

    probabilities: Probabilities
    serving: Serving


@dataclass(frozen=True)
class BatchReport:
    """How a run of the model went, for metrics."""

    requests: int
    samples: int
    seconds: float


@dataclass(eq=False)
class _Request(Waiting):
    timeout_s: float = field(kw_only=True)
    answer: "asyncio.Future[Answer]" = field(kw_only=True)
    arrived_ns: int = field(kw_only=True)
    """On the clock `time.perf_counter_ns`, as the next one."""
    ready_ns: int = 0
    """When its samples were decoded."""


class Batcher:
    """Answers requests with whatever model serves when their turn comes. Use it on one running event loop.

    Args:
        max_batch: samples in a run of the model at most; a larger request is refused.
        max_waiting: samples that wait at most; a request beyond it is refused at once.
        on_batch: told of each run.
        quick_s: a model whose runs take less runs on the event loop.
        quiet_turns: that model, where it waits for more requests, runs when the event loop has brought none in so many
            turns.

    """

    def __init__(
        self,
        max_batch: int,
        max_waiting: int,
        on_batch: Callable[[BatchReport], None] = lambda _: None,
        quick_s: float = QUICK_S,
        quiet_turns: int = QUIET_TURNS,
    ) -> None:
        self.queue: BatchQueue[_Request] = BatchQueue(max_batch, max_waiting)
        self.serving: Serving | None = None
        """The model that the next batch runs on; assign to swap it."""
        self._on_batch = on_batch
        self._quick_s = quick_s
        self._quiet_turns = quiet_turns
        self._typical_s = math.inf
        self._measured: Serving | None = None
        """The model whose runs usually take so long."""
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._linger = Linger()
        self._is_busy = False
        self._start: asyncio.Handle | None = None
        """The start of the next run, if it is set."""
        self._turns_left = 0
        """Turns of the event loop that the start is put off, if it is and no more requests come."""
        self._lingers_until = 0.0
        """Point in time until which it may be."""
        self._draining = ""
        """Why no more requests are taken; empty while they are."""
        self._unanswered: dict[_Request, None] = {}
        """In the order in which they came."""
        self._alarm: asyncio.TimerHandle | None = None
        """Set to the first of their deadlines, or before."""
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, raw: NDArray[Any] | Callable[[], NDArray[Any]], samples: int, timeout_s: float) -> Answer:
        """Wait for the answer to a request.

        Args:
            raw: decoded samples `[samples, *raw_shape]`, or what decodes them; that runs in another thread.
            samples: how many there are.
            timeout_s: seconds that the answer may take.

        Raises:
            RequestError: it was not answered; see its subclasses.
            SampleError: its samples cannot be used, or make the model's numbers overflow.
            TaskError: the task's own code failed.

        """
        if self._draining:
            raise UnavailableError(self._draining)
        if self.serving is None:
            raise UnavailableError("there is no model yet; train one, or put one into the model store")
        if samples > self.queue.max_batch:
            raise TooLargeError(f"the request has {samples} samples; {self.queue.max_batch} are the limit")
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        request = _Request(
            samples,
            deadline_s,
            timeout_s=timeout_s,
            answer=loop.create_future(),
            arrived_ns=time.perf_counter_ns(),
        )
        self.queue.add(request)
        self._idle.clear()
        self._unanswered[request] = None
        if self._alarm is None or deadline_s < self._alarm.when():
            self._set_alarm(loop, deadline_s)
        try:
            if isinstance(raw, np.ndarray):
                self._take_in(request, raw)
            else:
                decoding = loop.run_in_executor(self._decoders, raw)
                decoding.add_done_callback(partial(self._note_decoded, request))
            return await request.answer
        finally:
            del self._unanswered[request]
            self.queue.discard(request)  # it was cancelled, is too late, or cannot be decoded
            self._note_idle()

    async def drain(self, timeout_s: float, reason: str = _STOPS) -> None:
        """Take no more requests, and answer those that wait; what is left after `timeout_s` is refused.

        Args:
            timeout_s: seconds that they may take.
            reason: what those are told who come later.

        """
        self._draining = reason
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            for request in self.queue.clear():
                self._fail(request, UnavailableError(self._draining or _STOPS))
        self._model_thread.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _take_in(self, request: _Request, raw: NDArray[Any]) -> None:
        request.raw = raw
        request.ready_ns = time.perf_counter_ns()
        self._schedule()

    def _note_decoded(self, request: _Request, decoding: "asyncio.Future[NDArray[Any]]") -> None:
        if decoding.cancelled():
            self._fail(request, UnavailableError(self._draining or _STOPS))
        elif (error := decoding.exception()) is not None:
            if not isinstance(error, SampleError):
                log.error("samples of a request could not be decoded", exc_info=error)
            self._fail(request, error)
        else:
            self._take_in(request, decoding.result())

    def _schedule(self) -> None:
        """Set the start of the next run."""
        if self._is_busy or not len(self.queue):
            return
        self._turns_left = self._quiet_turns
        if self._start is not None:
            return
        loop = asyncio.get_running_loop()
        if self._is_quick and self._linger.is_worthwhile:
            self._lingers_until = loop.time() + LINGER_S
            self._start = loop.call_soon(self._wait_a_turn)
        else:
            # At the end of the event loop's turn, so that requests that arrived together run together.
            self._start = loop.call_soon(self._start_next)

    def _wait_a_turn(self) -> None:
        """Start the next run, unless the event loop still brings requests.

        Turns are counted, not time: where others have the processor for some milliseconds, requests have come
        meanwhile, and the event loop needs some turns to bring them.
        """
        loop = asyncio.get_running_loop()
        self._turns_left -= 1
        is_full = len(self.queue) >= self.queue.max_batch
        if self._turns_left <= 0 or is_full or loop.time() >= self._lingers_until:
            self._start_next()
        else:
            self._start = loop.call_soon(self._wait_a_turn)

    @property
    def _is_quick(self) -> bool:
        return self._measured is self.serving and self._typical_s < self._quick_s

    def _start_next(self) -> None:
        self._start = None
        loop = asyncio.get_running_loop()
        taken = self.queue.take(loop.time())
        for request in taken.expired:
            self._fail(request, DeadlineError("the request's time was over before its turn came"))
        if not taken.batch or self.serving is None:
            self._note_idle()
            return
        self._is_busy = True
        self._linger.note_run(len(taken.batch))
        if self._is_quick:
            self._finish(taken.batch, self._run(self.serving, taken.batch))
            return
        future = self._model_thread.submit(self._run, self.serving, taken.batch)
        future.add_done_callback(partial(self._hand_back, loop, taken.batch))

    def _run(self, serving: Serving, batch: list[_Request]) -> list[Answer | Exception]:
        """Return the answer to each request, or why there is none."""
        try:
            return self._answers(serving, batch)
        except Exception as error:  # whatever the model raises
            if not isinstance(error, SampleError):
                log.exception("a run of the model for %d requests failed", len(batch))
            if len(batch) == 1:
                return [_described(error)]
        # The samples of one request may be why: in runs of their own, the others are answered.
        return [self._answer_alone(serving, request) for request in batch]

    def _answer_alone(self, serving: Serving, request: _Request) -> Answer | Exception:
        try:
            return self._answers(serving, [request])[0]
        except Exception as error:  # whatever the model raises; it was logged with the run of all
            return _described(error)

    def _answers(self, serving: Serving, batch: list[_Request]) -> list[Answer | Exception]:
        began_ns = time.perf_counter_ns()
        given = [request.raw for request in batch if request.raw is not None]
        raw = given[0] if len(given) == 1 else np.concatenate(given)
        together_ns = time.perf_counter_ns()
        probabilities = serving.recognizer.probabilities(raw)
        ran_ns = time.perf_counter_ns()
        seconds = (ran_ns - began_ns) / 1e9
        self._note_seconds(serving, seconds)
        self._on_batch(BatchReport(len(batch), raw.shape[0], seconds))
        ends = list(itertools.accumulate(request.samples for request in batch))
        if ends[-1] != len(probabilities):
            raise RequestError(f"the model gave {len(probabilities)} rows for {ends[-1]} samples")
        parts = [probabilities[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        answers: list[Answer | Exception] = [Answer(rows, serving) for rows in parts]
        if not is_finite(probabilities):
            answers = [_checked(Answer(rows, serving)) for rows in parts]
        serving.statistics.note_run(
            len(batch),
            raw.shape[0],
            queue_ns=sum([began_ns - request.ready_ns for request in batch]),
            decode_ns=sum([request.ready_ns - request.arrived_ns for request in batch]),
            input_ns=together_ns - began_ns,
            infer_ns=ran_ns - together_ns,
            output_ns=time.perf_counter_ns() - ran_ns,
        )
        return answers

    def _note_seconds(self, serving: Serving, seconds: float) -> None:
        if self._measured is not serving:
            self._measured, self._typical_s = serving, seconds
            return
        usual = self._typical_s
        self._typical_s = _FADING * usual + (1 - _FADING) * min(seconds, _OUTLIER * usual)

    def _hand_back(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Request], done: "Future[list[Answer | Exception]]"
    ) -> None:
        stopped: list[Answer | Exception] = [UnavailableError(self._draining or _STOPS)] * len(batch)
        with contextlib.suppress(RuntimeError):  # the event loop was closed while the model ran
            loop.call_soon_threadsafe(self._finish, batch, stopped if done.cancelled() else done.result())

    def _finish(self, batch: list[_Request], outcomes: list[Answer | Exception]) -> None:
        self._is_busy = False
        for request, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(request, outcome)
            elif not request.answer.done():
                request.answer.set_result(outcome)
        self._schedule()
        self._note_idle()

    def _set_alarm(self, loop: asyncio.AbstractEventLoop, at_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(at_s, self._expire)

    def _expire(self) -> None:
        """Tell the requests whose time is over, and look again when the next one's is."""
        self._alarm = None
        loop = asyncio.get_running_loop()
        now, next_s = loop.time(), math.inf
        for request in self._unanswered:
            if request.deadline_s <= now:
                self._fail(request, DeadlineError(f"the request was not answered within {request.timeout_s:g} s"))
            elif not request.answer.done():
                next_s = min(next_s, request.deadline_s)
        if math.isfinite(next_s):
            self._set_alarm(loop, next_s)

    def _fail(self, request: _Request, error: BaseException) -> None:
        if not request.answer.done():
            request.answer.set_exception(error)

    def _note_idle(self) -> None:
        if not self._is_busy and not len(self.queue):
            self._idle.set()


def _described(error: Exception) -> Exception:
    """Return what the model raised as something that says so."""
    return error if isinstance(error, SampleError | TaskError) else RequestError(f"the model failed: {error}")


def _checked(answer: Answer) -> Answer | SampleError:
    """Return an answer, or what is wrong with the samples that it is for."""
    try:
        ensure_finite(answer.probabilities)
    except SampleError as error:
        return error
    return answer
