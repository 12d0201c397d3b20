"""Sessions in which the devices mask what they send, with a real coordinator and devices in threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from local_devices import Device, Recorded
from seeding import seeded
from torch import nn

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, LocalCurvature, NewtonOptimizer
from edge_client.exchange import ExchangeError
from edge_client.sync import LocalSteps

PLANS = {
    "every batch": EveryBatch,
    "own curvature": partial(LocalCurvature, sync_every=2),
    "local steps": lambda exchange: LocalSteps(exchange, 2),
}


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


def model_of(seed=0):
    with seeded(seed):
        return nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Tanh(), nn.Linear(40, 3))


def samples_of(device, step):
    rng = np.random.default_rng((device, step))
    x = torch.from_numpy(rng.normal(device, 1, (8 + device, 6)).astype(np.float32))
    return x, torch.from_numpy(rng.integers(0, 3, 8 + device))


def train(coordinator, device, plan=EveryBatch, steps=6, model=None, act=lambda optimizer, step: None):
    model = model_of() if model is None else model
    with GradientExchange.connect(coordinator.address, session="s", device=f"d{device}") as exchange:
        optimizer = NewtonOptimizer(model, lr=0.05, sync=plan(exchange))
        for step in range(steps):
            act(optimizer, step)
            x, y = samples_of(device, step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.report(loss.item())
            optimizer.step()
        optimizer.synchronise()
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def run(coordinator, devices=3, plan=EveryBatch, steps=6, acts=None, **settings):
    coordinator.create_session("s", SessionSettings(devices=devices, step_deadline_s=20, **settings))
    models = [model_of() for _ in range(devices)]
    with ThreadPoolExecutor(devices) as pool:
        futures = [
            pool.submit(train, coordinator, d, plan, steps, models[d], (acts or {}).get(d, lambda o, s: None))
            for d in range(devices)
        ]
        return [future.result() for future in futures]


def assert_identical(states):
    for state in states[1:]:
        assert not [name for name, tensor in states[0].items() if not torch.equal(tensor, state[name])]


def flat(state):
    return torch.cat([tensor.flatten() for tensor in state.values()])


@pytest.mark.parametrize("plan", PLANS)
def test_masked_devices_lose_no_more_than_int8_and_stay_identical(plan):
    def ends_of(**settings):
        with embedded_coordinator() as coordinator:
            return run(coordinator, plan=PLANS[plan], **settings)

    exact = flat(ends_of(codec="fp32")[0])
    plain = flat(ends_of(codec="int8")[0])
    masked = ends_of(secure_aggregation=True)
    assert_identical(masked)
    assert (flat(masked[0]) - exact).norm() < 1.6 * (plain - exact).norm()


def test_all_a_coordinator_sees_of_a_device_is_masked(coordinator):
    """Zeros are sent in place of gradients: their masked integers are spread over all values."""
    coordinator.create_session("s", SessionSettings(devices=2, secure_aggregation=True))
    session = coordinator.directory.find("s").session
    seen, contribute = [], session.contribute

    def watched(device, samples, key, values):
        seen.append((samples, values.copy()))
        contribute(device, samples, key, values)

    session.contribute = watched

    def skip_all(device):
        with GradientExchange.connect(coordinator.address, session="s", device=f"d{device}") as exchange:
            optimizer = NewtonOptimizer(model_of(), sync=EveryBatch(exchange))
            for _ in range(2):
                optimizer.zero_grad()
                optimizer.step(samples=0)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(skip_all, range(2)))
    assert {samples for samples, _ in seen} == {1}
    largest = [values for _, values in seen if len(values) >= 100]
    assert largest
    for values in largest:
        assert len(np.unique(values)) > 0.9 * len(values)


@pytest.mark.parametrize("gone", [1, 2])
def test_the_others_finish_a_step_in_which_some_drop_out(coordinator, gone):
    """Of six devices, one or two leave while the masks of a step hold them in."""
    coordinator.create_session("s", SessionSettings(devices=6, quorum=4, step_deadline_s=2, secure_aggregation=True))
    models = [model_of() for _ in range(6)]

    def act(device):
        def at(optimizer, step):
            if step == 3 and device < gone:
                # The masks are settled without the device's loop; it dies before it contributes.
                until(lambda: masks_of(coordinator, f"d{device}"))
                raise RuntimeError("gone")

        return at

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(train, coordinator, d, EveryBatch, 6, models[d], act(d)) for d in range(6)]
        for future in futures[:gone]:
            with pytest.raises(RuntimeError, match="gone"):
                future.result()
        assert_identical([future.result() for future in futures[gone:]])


def masks_of(coordinator, device):
    masking = coordinator.directory.find("s").session.masking
    return masking._round is not None and device in masking._round.maskers


def until(condition, timeout_s=20):
    over = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < over
        time.sleep(0.005)


def silent(device, wrong=lambda frame: None):
    """Return what makes a device of a session answer as `wrong` says once it is asked to reveal shares in step 3."""

    def act(optimizer, step):
        if step == 1:
            masking = optimizer._sync._membership._masking
            answer = masking.answer

            def answered(frame):
                said = answer(frame)
                return wrong(said) if frame.HasField("unmask") and frame.step == 3 else said

            masking.answer = answered

    return {device: act}


def test_a_device_that_is_gone_before_it_reveals_is_in_the_sum_all_the_same(coordinator):
    states = run(coordinator, devices=4, quorum=3, acts=silent(0), secure_aggregation=True)
    assert_identical(states)
    with embedded_coordinator() as other:
        expected = run(other, devices=4, quorum=3, secure_aggregation=True)
    torch.testing.assert_close(flat(states[0]), flat(expected[0]), rtol=0, atol=0)


def test_devices_stay_identical_over_a_step_that_cannot_be_unmasked(coordinator):
    """Two of three do not reveal."""

    def silent_once():
        said_nothing = iter([None])
        return lambda said: next(said_nothing, said)

    acts = {d: silent(d, silent_once())[d] for d in range(2)}
    coordinator.create_session("s", SessionSettings(devices=3, step_deadline_s=1.5, secure_aggregation=True))
    models = [model_of() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        futures = [
            pool.submit(train, coordinator, d, EveryBatch, 6, models[d], acts.get(d, lambda o, s: None))
            for d in range(3)
        ]
        assert_identical([future.result() for future in futures])


def test_a_device_that_reveals_a_wrong_share_is_named_and_the_others_go_on(coordinator):
    def tampered(said):
        shares = bytearray(said.revealed.of_seeds)
        shares[40] ^= 1
        said.revealed.of_seeds = bytes(shares)
        return said

    coordinator.create_session("s", SessionSettings(devices=4, quorum=3, step_deadline_s=5, secure_aggregation=True))
    models = [model_of() for _ in range(4)]

    def slow(said):
        time.sleep(0.3)  # the wrong share is there before the others'
        return said

    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(train, coordinator, d, EveryBatch, 6, models[d], silent(d, tampered if d == 1 else slow)[d])
            for d in range(4)
        ]
        with pytest.raises(ExchangeError, match="device 'd1'.* revealed a share of device 'd1' in step 3"):
            futures[1].result()
        assert_identical([future.result() for d, future in enumerate(futures) if d != 1])


@pytest.mark.parametrize("plan", ["every batch", "local steps"])
def test_a_device_that_comes_late_masks_from_its_second_step_on(coordinator, plan):
    coordinator.create_session(
        "s", SessionSettings(devices=3, max_devices=4, rejoin_deadline_s=30, secure_aggregation=True)
    )
    joined, started = threading.Event(), threading.Event()

    def act(optimizer, step):
        if step == 4:
            started.set()
        if step >= 4 and not joined.is_set():
            time.sleep(0.05)  # a snapshot is handed in between two steps

    models = [model_of() for _ in range(3)] + [model_of(seed=9)]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(train, coordinator, d, PLANS[plan], 100, models[d], act) for d in range(3)]
        assert started.wait(30)

        def late():
            with GradientExchange.connect(coordinator.address, session="s", device="d3") as exchange:
                optimizer = NewtonOptimizer(models[3], lr=0.05, sync=PLANS[plan](exchange))
                optimizer.join()
                joined.set()
                while optimizer.current_step < 100:
                    x, y = samples_of(3, optimizer.current_step)
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(models[3](x), y).backward()
                    optimizer.step()
                optimizer.synchronise()
            return {n: t for n, t in models[3].state_dict().items() if t.is_floating_point()}

        seen = []
        session = coordinator.directory.find("s").session
        contribute = session.contribute

        def watched(device, samples, key, values):
            seen.append(device)
            contribute(device, samples, key, values)

        session.contribute = watched
        futures.append(pool.submit(late))
        assert_identical([future.result() for future in futures])
    assert "d3" in seen


def test_a_coordinator_sees_no_state_that_heals_a_device(coordinator):
    """It carries states; whoever has only what it has cannot read them."""
    coordinator.create_session("s", SessionSettings(devices=2, secure_aggregation=True))
    room = coordinator.directory.find("s")
    seen, take = [], room.healing._broker.take

    async def watched(upload, chunks):
        snapshot = await take(upload, chunks)
        seen.append(bytes(snapshot.data))
        return snapshot

    room.healing._broker.take = watched
    models, joined = [model_of(1), model_of(0)], threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            train, coordinator, 0, EveryBatch, 5, models[0], lambda o, step: None if step else (o.join(), joined.set())
        )
        assert joined.wait(30)
        second = pool.submit(train, coordinator, 1, EveryBatch, 5, models[1])
        assert_identical([first.result(), second.result()])
    assert seen
    for data in seen:
        assert b"PK" not in data[:4]  # as torch.save begins
        assert len(np.unique(np.frombuffer(data, np.uint8))) == 256


def test_a_coordinator_that_is_restarted_asks_for_keys_anew(tmp_path):
    first = Recorded(tmp_path / "record")
    first.create_session(SessionSettings(devices=3, secure_aggregation=True))
    devices = [Device(first.address, number) for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda device: device.train(6), devices))
        first.suspend()
        second = Recorded(tmp_path / "record", first.port)
        list(pool.map(lambda device: device.train(12), devices))
        for device in devices[1:]:
            for (step, one), (_, other) in zip(devices[0].seen, device.seen, strict=True):
                assert all(torch.equal(one[name], other[name]) for name in one), step
        for device in devices:
            device.close()
        second.suspend()
