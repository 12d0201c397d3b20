"""The queue as a state machine, then the batcher with a model that a test holds up, and with a quick one."""

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.inference.batcher import Batcher, Serving
from edge_client.inference.errors import (
    DeadlineError,
    NotFiniteError,
    OverloadedError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from edge_client.inference.linger import PROBE_EVERY, SURE_AFTER
from edge_client.inference.queue import BatchQueue, Waiting
from edge_client.tasks import SampleError


def waiting(samples: int, deadline_s: float = 100.0, *, is_decoded: bool = True) -> Waiting:
    return Waiting(samples, deadline_s, np.zeros(samples) if is_decoded else None)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 4), st.integers(0, 30)),
            st.tuples(st.just("take")),
            st.tuples(st.just("cancel"), st.integers(0, 5)),
        ),
        max_size=40,
    )
)
def test_every_request_leaves_once_in_order_and_limits_hold(events):
    queue, model, now = BatchQueue(max_batch=4, max_waiting=10), [], 0.0
    for event in events:
        now += 1.0
        match event:
            case ("add", samples, seconds):
                request = waiting(samples, now + seconds)
                if sum(r.samples for r in model) + samples > 10:
                    with pytest.raises(OverloadedError):
                        queue.add(request)
                else:
                    queue.add(request)
                    model.append(request)
            case ("take",):
                taken = queue.take(now)
                assert taken.expired == [r for r in model if r.deadline_s <= now]
                alive = [r for r in model if r.deadline_s > now]
                assert taken.batch == alive[: len(taken.batch)]
                assert sum(r.samples for r in taken.batch) <= 4
                model = alive[len(taken.batch) :]
                full = sum(r.samples for r in taken.batch) + (model[0].samples if model else 4) > 4
                assert full or not model or not taken.batch
                assert taken.batch or not alive
            case ("cancel", place):
                if place < len(model):
                    queue.discard(model.pop(place))
        assert len(queue) == sum(r.samples for r in model)


def test_a_request_that_is_being_decoded_keeps_its_place_and_holds_nobody_up():
    queue = BatchQueue(max_batch=8, max_waiting=8)
    slow, quick = waiting(1, is_decoded=False), waiting(2)
    queue.add(slow)
    queue.add(quick)
    assert queue.take(0).batch == [quick]
    slow.raw = np.zeros(1)
    queue.add(quick)
    assert queue.take(0).batch == [slow, quick]


class HeldModel:
    """A recognizer that answers each sample with its own number, when the test lets it."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.began = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.fails = False

    def probabilities(self, raw):
        self.runs.append(len(raw))
        self.began.release()
        assert self.go_on.acquire(timeout=30)
        if self.fails:
            raise ValueError("no memory")
        return raw.copy()


async def held_batcher(max_batch=4, max_waiting=6):
    """Return a batcher whose model is at work on a request, that request, and the model."""
    model, batcher = HeldModel(), Batcher(max_batch, max_waiting, quick_s=0.0)
    batcher.serving = Serving(1, model)
    first = asyncio.create_task(batcher.submit(np.array([[0.0]]), 1, 30))
    await asyncio.to_thread(model.began.acquire)
    return batcher, first, model


def ask(batcher, number, samples=1, timeout_s=30.0):
    return asyncio.create_task(batcher.submit(np.full((samples, 1), float(number)), samples, timeout_s))


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_that_come_while_the_model_is_busy_run_together():
    async def scenario():
        batcher, first, model = await held_batcher()
        others = [ask(batcher, number, samples) for number, samples in ((1, 1), (2, 2), (3, 2))]
        await settle()
        for _ in range(3):
            model.go_on.release()
        for number, task in enumerate([first, *others]):
            answer = await task
            assert set(answer.probabilities.ravel()) == {number}
        assert [len(task.result().probabilities) for task in others] == [1, 2, 2]
        assert model.runs == [1, 3, 2]  # 1 + 2 fill a batch of 4 but for one place, and the request of 2 does not fit
        await batcher.drain(30)

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_and_a_cancelled_request_makes_room():
    async def scenario():
        batcher, first, model = await held_batcher()
        queued = [ask(batcher, 1, 3), ask(batcher, 2, 3)]
        await settle()
        with pytest.raises(OverloadedError, match="6 samples wait, 6 may; try again later"):
            await ask(batcher, 3)
        queued[0].cancel()
        await settle()
        late = ask(batcher, 4, 3)
        await settle()
        for _ in range(3):
            model.go_on.release()
        assert (await late).probabilities.tolist() == [[4.0]] * 3
        assert model.runs == [1, 3, 3]  # nothing was computed for the one that was cancelled
        await asyncio.gather(first, queued[1])
        await batcher.drain(30)

    asyncio.run(scenario())


def test_a_deadline_ends_the_wait_and_the_late_request_is_not_computed():
    async def scenario():
        batcher, first, model = await held_batcher()
        with pytest.raises(DeadlineError, match="not answered within 0.01 s"):
            await ask(batcher, 1, 2, timeout_s=0.01)
        assert len(batcher.queue) == 0
        model.go_on.release()
        await first
        assert model.runs == [1]
        await batcher.drain(30)

    asyncio.run(scenario())


def test_a_swap_leaves_the_batch_that_runs_alone():
    async def scenario():
        batcher, first, model = await held_batcher()
        other = HeldModel()
        batcher.serving = Serving(2, other)
        second = ask(batcher, 1)
        await settle()
        model.go_on.release()
        other.go_on.release()
        assert [(await task).serving.version for task in (first, second)] == [1, 2]
        await batcher.drain(30)

    asyncio.run(scenario())


def test_draining_answers_what_waits_and_refuses_what_comes():
    async def scenario():
        batcher, first, model = await held_batcher()
        second = ask(batcher, 1)
        await settle()
        drained = asyncio.create_task(batcher.drain(30))
        await settle()
        with pytest.raises(UnavailableError, match="the server stops"):
            await ask(batcher, 2)
        model.go_on.release()
        model.go_on.release()
        await asyncio.gather(first, second, drained)

    asyncio.run(scenario())


def test_draining_ends_though_the_model_hangs():
    async def scenario():
        batcher, first, model = await held_batcher()
        second = ask(batcher, 1)
        await settle()
        await batcher.drain(0.01)
        with pytest.raises(UnavailableError, match="the server stops"):
            await second
        model.go_on.release()
        await first

    asyncio.run(scenario())


def test_failures_are_those_of_the_requests_that_they_belong_to():
    async def scenario():
        batcher, first, model = await held_batcher()
        model.fails = True
        model.go_on.release()
        with pytest.raises(RequestError, match="the model failed: no memory"):
            await first
        model.fails = False

        def damaged():
            raise SampleError("it is damaged")

        model.go_on.release()
        bad = asyncio.create_task(batcher.submit(damaged, 1, 30))
        good = asyncio.create_task(batcher.submit(lambda: np.ones((1, 1)), 1, 30))
        with pytest.raises(SampleError, match="it is damaged"):
            await bad
        assert (await good).probabilities.tolist() == [[1.0]]
        with pytest.raises(TooLargeError, match="has 5 samples; 4 are the limit"):
            await ask(batcher, 0, 5)
        batcher.serving = None
        with pytest.raises(UnavailableError, match="there is no model yet"):
            await ask(batcher, 0)
        await batcher.drain(30)

    asyncio.run(scenario())


def test_a_sample_that_overflows_fails_alone():
    async def scenario():
        batcher, first, model = await held_batcher()
        good, bad, two = ask(batcher, 1), ask(batcher, float("nan")), ask(batcher, 2, 2)
        await settle()
        model.go_on.release()
        model.go_on.release()
        await first
        with pytest.raises(NotFiniteError, match="the sample: the model's output 'probabilities' is not finite"):
            await bad
        assert [(await task).probabilities.ravel().tolist() for task in (good, two)] == [[1.0], [2.0, 2.0]]
        assert model.runs == [1, 4]  # nothing was computed twice
        model.go_on.release()
        with pytest.raises(NotFiniteError, match="sample 2 of 3: "):
            await batcher.submit(np.array([[0.0], [np.inf], [0.0]]), 3, 30)
        await batcher.drain(30)

    asyncio.run(scenario())


@pytest.mark.parametrize("quick_s", [0.0, 60.0])
def test_a_request_that_the_model_fails_at_fails_alone(quick_s, caplog):
    class UnluckyModel(QuickModel):
        def probabilities(self, raw):
            probabilities = super().probabilities(raw)
            if (raw == 13).any():
                raise ArithmeticError("13 is unlucky")
            return probabilities

    async def scenario():
        model, batcher = UnluckyModel(), Batcher(8, 8, quick_s=quick_s)
        batcher.serving = Serving(1, model)
        await ask(batcher, 0)
        tasks = [ask(batcher, number) for number in (1, 13, 2)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [outcomes[place].probabilities.item() for place in (0, 2)] == [1, 2]
        assert (type(outcomes[1]), str(outcomes[1])) == (RequestError, "the model failed: 13 is unlucky")
        assert (await ask(batcher, 3)).probabilities.item() == 3
        assert model.runs == [1, 3, 1, 1, 1, 1]
        await batcher.drain(30)

    asyncio.run(scenario())
    assert [record.message for record in caplog.records if record.exc_info] == [
        "a run of the model for 3 requests failed"
    ]


class QuickModel:
    """A recognizer that answers each sample with its own number, at once."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def probabilities(self, raw):
        self.runs.append(len(raw))
        return raw.copy()


class ShortModel(QuickModel):
    """Answers with a row less than there are samples."""

    def probabilities(self, raw):
        return super().probabilities(raw)[1:]


def test_a_model_that_answers_too_little_fails_its_requests():
    async def scenario():
        batcher = Batcher(8, 8)
        batcher.serving = Serving(1, ShortModel())
        with pytest.raises(RequestError, match="the model failed: "):
            await ask(batcher, 0, 2)
        await batcher.drain(30)

    asyncio.run(scenario())


def test_a_quick_model_waits_while_the_event_loop_brings_requests_and_not_for_a_lone_client():
    async def scenario():
        model, batcher = QuickModel(), Batcher(64, 64, quick_s=60.0, quiet_turns=20)
        batcher.serving = Serving(1, model)

        async def ask_apart(count):
            tasks = []
            for number in range(count):
                tasks.append(ask(batcher, number))
                await settle()
            return tasks

        await ask(batcher, 0)  # the first run shows that the model is quick
        tasks = await ask_apart(6)  # together they take more turns than one alone would wait
        assert not any(task.done() for task in tasks)
        assert [(await task).probabilities.item() for task in tasks] == [0, 1, 2, 3, 4, 5]
        for _ in range(SURE_AFTER):  # whoever stays alone waits until it is quiet,
            (task,) = await ask_apart(1)
            assert not task.done()
            await task
        (probing,) = await ask_apart(1)
        assert not probing.done()
        await probing
        for _ in range(PROBE_EVERY - 1):  # and then no more, but in a run that probes
            (task,) = await ask_apart(1)
            assert task.done()
        tasks = await ask_apart(2)
        assert not any(task.done() for task in tasks)
        await asyncio.gather(*tasks)
        (task,) = await ask_apart(1)
        assert not task.done()  # for it is not alone any more
        await task
        assert model.runs == [1, 6, *[1] * (SURE_AFTER + PROBE_EVERY), 2, 1]
        await batcher.drain(30)

    asyncio.run(scenario())


def test_a_quick_model_that_waits_for_more_runs_when_its_batch_is_full_or_its_time_is_over():
    async def scenario():
        model, batcher = QuickModel(), Batcher(4, 64, quick_s=60.0, quiet_turns=10**9)
        batcher.serving = Serving(1, model)
        await ask(batcher, 0)
        tasks = [ask(batcher, number, 2) for number in range(2)]
        await settle()
        assert all(task.done() for task in tasks)
        await asyncio.wait_for(ask(batcher, 0), 30)
        assert model.runs == [1, 4, 1]
        await batcher.drain(30)

    asyncio.run(scenario())


def test_a_run_that_others_held_up_leaves_a_quick_model_quick():
    class Model(QuickModel):
        def probabilities(self, raw):
            self.thread = threading.current_thread()
            return super().probabilities(raw)

    async def scenario():
        model, batcher = Model(), Batcher(4, 64, quick_s=60.0)
        batcher.serving = Serving(1, model)

        async def runs_on_the_event_loop():
            await ask(batcher, 0)
            return model.thread is threading.current_thread()

        assert [await runs_on_the_event_loop() for _ in range(2)] == [False, True]  # nothing is known of the first
        batcher._note_seconds(batcher.serving, 1e6)  # as if the system had run others meanwhile
        assert await runs_on_the_event_loop()
        for _ in range(100):
            batcher._note_seconds(batcher.serving, 1e6)
        assert not await runs_on_the_event_loop()
        batcher.serving = Serving(2, model)
        assert [await runs_on_the_event_loop() for _ in range(2)] == [False, True]
        await batcher.drain(30)

    asyncio.run(scenario())
