"""The exchange over gRPC, with a real coordinator and several devices in threads."""

import asyncio
import hashlib
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import nn

from benchmarks.shared.tcp_proxy import TcpProxy
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, LocalCurvature, NewtonOptimizer
from edge_client.exchange import Cause, Evaluation, ExchangeError, InProcessExchange, NonFiniteGradientError
from edge_client.exchange.remote.assembly import Assembly
from edge_client.exchange.remote.snapshots import download
from edge_client.sync.sketching import sketch_of

SPECS = [TensorSpec("w", (3, 2)), TensorSpec("big", (700,)), TensorSpec("b", (), "float64")]
KEYS = [(spec.kind, spec.name) for spec in SPECS]


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


class Weights:
    """A replica whose state is some bytes and the steps that were applied to them."""

    is_shared = True
    epsilon = None

    def __init__(self, weights: bytes = b"same", next_step: int | None = None) -> None:
        self.weights, self.next_step, self.applied = weights, next_step, []

    def digest(self) -> bytes:
        return hashlib.sha256(self.weights).digest()

    def frozen_sketch(self):
        return None

    def sketch(self, seed: int):
        return sketch_of({"w": torch.tensor(list(self.weights), dtype=torch.float32)}, seed)

    def dump(self) -> bytes:
        return self.weights

    def load(self, data: bytes) -> None:
        self.weights = data

    def apply(self, result) -> None:
        self.applied.append(result.step)


class Joined:
    """A device in a session."""

    def __init__(self, coordinator, device, session="s", specs=SPECS, options=None, weights=b"same") -> None:
        self.exchange = GradientExchange.connect(coordinator.address, session=session, device=device)
        self.replica = Weights(weights)
        self.place = self.exchange.join(specs, options or {}, self.replica)
        self.close = self.exchange.close

    @property
    def traffic(self):
        return self.exchange.traffic


join = Joined


def exchange_once(joined, tensors, samples, loss=0.0, evaluation=None):
    joined.place.begin(samples)
    for key, tensor in tensors.items():
        joined.place.contribute(key, tensor)
    joined.place.complete(loss, evaluation)
    return joined.place.collect()


def tensors(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(spec.shape, generator=generator, dtype=getattr(torch, spec.dtype))
        for key, spec in zip(KEYS, SPECS, strict=True)
    }


@pytest.mark.parametrize(
    ("codec", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-2), ("fp16", 2e-3), ("int8", 3e-2), ("powersgd", 2e-2)]
)
@pytest.mark.parametrize("frame_bytes", [1024, 1 << 20])
def test_every_device_gets_the_same_plain_weighted_mean(coordinator, codec, tolerance, frame_bytes):
    coordinator.create_session("s", SessionSettings(devices=3, codec=codec, frame_bytes=frame_bytes))
    exchanges = [join(coordinator, f"d{i}") for i in range(3)]
    samples = [1, 5, 10]
    with ThreadPoolExecutor(3) as pool:
        for step in range(3):
            inputs = [tensors(10 * step + i) for i in range(3)]
            results = list(pool.map(exchange_once, exchanges, inputs, samples, samples))
            for key in KEYS:
                mean = sum(n * values[key] for n, values in zip(samples, inputs, strict=True)) / 16
                for result in results:
                    assert result.tensors[key].dtype == inputs[0][key].dtype
                    assert torch.equal(result.tensors[key], results[0].tensors[key])
                    torch.testing.assert_close(result.tensors[key], mean, rtol=tolerance, atol=tolerance)
            assert {(r.step, r.samples, r.devices) for r in results} == {(step, 16, 3)}
            assert results[0].loss == pytest.approx((1 + 25 + 100) / 16)
    for exchange in exchanges:
        exchange.close()


def test_a_device_whose_scheduler_is_elsewhere_is_told_so_and_the_others_go_on(coordinator):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2))
    a, b, c = (join(coordinator, name) for name in "abc")
    session = coordinator.directory.find("s").session

    def exchange(joined, lr):
        joined.place.begin(1)
        for key, tensor in tensors(0).items():
            joined.place.contribute(key, tensor)
        joined.place.complete(0.5, hyperparameters={"lr": lr, "momentum": 0.9})
        return joined.place.collect()

    with ThreadPoolExecutor(3) as pool:
        assert [result.devices for result in pool.map(exchange, (a, b, c), [0.1] * 3)] == [3] * 3
        first = pool.submit(exchange, a, 0.05)
        deadline = time.monotonic() + 10
        while "a" not in session.step.contributions:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        message = "device 'c', step 1: its option 'lr' is 0.1 where it is 0.05 on device 'a' and 1 other; all devices"
        other = pool.submit(exchange, c, 0.1)
        assert exchange(b, 0.05).devices == first.result(20).devices == 2
        with pytest.raises(ExchangeError, match=message) as caught:
            other.result(20)
        assert caught.value.cause is Cause.INVALID
    for joined in (a, b, c):
        joined.close()


def with_nan(seed: int) -> dict:
    spoilt = tensors(seed)
    spoilt[KEYS[1]][650] = math.nan  # in the last of its slices
    return spoilt


def exchange_if_finite(joined, tensors, samples, loss=0.0):
    """Skip the batch once a tensor turns out not to be finite."""
    joined.place.begin(samples)
    for key, tensor in tensors.items():
        try:
            joined.place.contribute(key, tensor)
        except NonFiniteGradientError:
            joined.place.skip()
            joined.place.contribute(key, torch.zeros_like(tensor))
    joined.place.complete(loss)
    return joined.place.collect()


@pytest.mark.parametrize("codec", ["fp32", "int8", "powersgd"])
def test_a_device_can_skip_its_batch_before_or_within_a_step(coordinator, codec):
    coordinator.create_session("s", SessionSettings(devices=2, codec=codec, frame_bytes=1024))
    a, b = join(coordinator, "a"), join(coordinator, "b")
    zeros = {key: torch.zeros_like(tensor) for key, tensor in tensors(0).items()}
    with ThreadPoolExecutor(2) as pool:

        def exchange(*batches):
            results = list(pool.map(exchange_if_finite, (a, b), *zip(*batches, strict=True)))
            for key in KEYS:
                assert torch.equal(results[0].tensors[key], results[1].tensors[key])
            return results[0]

        alone = exchange((zeros, 0, math.nan), (tensors(1), 5, 2.0))
        assert (alone.samples, alone.devices, alone.loss) == (5, 1, 2.0)
        torch.testing.assert_close(alone.tensors[KEYS[0]], tensors(1)[KEYS[0]], rtol=3e-2, atol=3e-2)
        late = exchange((with_nan(2), 3, math.nan), (tensors(3), 5, 2.0))
        assert (late.samples, late.devices, late.loss) == (5, 1, 2.0)
        torch.testing.assert_close(late.tensors[KEYS[2]], tensors(3)[KEYS[2]], rtol=3e-2, atol=3e-2)
        nobody = exchange((zeros, 0, math.nan), (with_nan(4), 5, math.nan))
        assert (nobody.samples, nobody.devices, math.isnan(nobody.loss)) == (0, 0, True)
        assert not nobody.tensors[KEYS[1]].any()
        both = exchange((tensors(5), 1, 1.0), (tensors(6), 1, 1.0))
        assert (both.samples, both.devices) == (2, 2)
    for joined in (a, b):
        joined.close()


def test_a_device_alone_skips_likewise():
    place = InProcessExchange().join(SPECS, {}, Weights())
    for samples in (0, 4):
        place.begin(samples)
        place.contribute(KEYS[0], torch.ones(3, 2))
        with pytest.raises(NonFiniteGradientError):
            place.contribute(KEYS[2], torch.tensor(math.nan))
        place.skip()
        place.contribute(KEYS[2], torch.tensor(0.0))
        place.complete(1.0)
        result = place.collect()
        assert (result.samples, result.devices, math.isnan(result.loss)) == (0, 0, True)
        assert not any(tensor.any() for tensor in result.tensors.values())
    assert place.step == 2


def test_frames_leave_and_come_back_before_the_step_is_collected(coordinator):
    """What a hook sends early is synchronised while backward still runs."""
    coordinator.create_session("s", SessionSettings(devices=2, frame_bytes=1024))
    exchanges = [join(coordinator, f"d{i}") for i in range(2)]
    before = exchanges[0].traffic.received
    for exchange in exchanges:
        exchange.place.begin(1)
        exchange.place.contribute(KEYS[1], torch.ones(700))
    deadline = time.monotonic() + 10
    while exchanges[0].traffic.received - before < 2000 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert exchanges[0].traffic.received - before >= 2000  # two full frames of means


def test_what_has_come_is_counted_under_the_lock_that_it_is_taken_with(coordinator, monkeypatch):
    """Else the device's thread takes a step out while the stream's thread counts, and the place is lost."""
    coordinator.create_session("s", SessionSettings(devices=1))
    device = join(coordinator, "d0")
    link, counted = device.place._link, []
    count = Assembly.waiting.fget

    def is_counted(assembly):
        counted.append(link._changed._is_owned())
        return count(assembly)

    monkeypatch.setattr(Assembly, "waiting", property(is_counted))
    for step in range(3):
        assert exchange_once(device, tensors(0), 1).step == step
    device.close()
    assert counted
    assert all(counted)


def test_other_weights_are_replaced_by_those_of_the_session(coordinator):
    coordinator.create_session("s", SessionSettings(devices=3))
    first = join(coordinator, "a", weights=b"A" * 3_000_000)
    same = join(coordinator, "b", weights=b"A" * 3_000_000)
    with ThreadPoolExecutor(3) as pool:
        # The first device hands its state in from within its step, as soon as it begins one.
        steps = [pool.submit(exchange_once, exchange, tensors(i), 1) for i, exchange in enumerate((first, same))]
        other = join(coordinator, "c", weights=b"B")
        assert other.replica.weights == b"A" * 3_000_000
        exchange_once(other, tensors(2), 1)
        assert all(step.result().devices == 3 for step in steps)


def test_nobody_listening_is_said_within_seconds():
    began = time.monotonic()
    with pytest.raises(ExchangeError, match=r"no coordinator answers at 127.0.0.1:9 within 1 s") as raised:
        GradientExchange.connect("127.0.0.1:9", session="s", device="a", connect_timeout_s=1.0)
    assert raised.value.cause is Cause.UNREACHABLE
    assert time.monotonic() - began < 10


def test_refusals_reach_the_user_in_words(coordinator):
    with pytest.raises(ExchangeError, match="session 'nowhere' does not exist") as raised:
        join(coordinator, "a", session="nowhere")
    assert raised.value.cause is Cause.REFUSED
    coordinator.create_session("s", SessionSettings(devices=2))
    join(coordinator, "a", options={"lr": "0.1"})
    for device, changes, message in [
        ("a", {}, "a live device with this id"),
        ("b", {"specs": [TensorSpec("w", (3, 9)), *SPECS[1:]]}, "3 x 2 float32 where this device has.* 3 x 9"),
        ("b", {"options": {"lr": "0.2"}}, "option 'lr' is 0.1 in the session but 0.2 on this device"),
    ]:
        with pytest.raises(ExchangeError, match=message):
            join(coordinator, device, **({"options": {"lr": "0.1"}} | changes))


def test_a_coordinator_that_is_lost_during_the_first_join_is_asked_again(coordinator):
    coordinator.create_session("s", SessionSettings(devices=1))
    with TcpProxy(coordinator.address) as proxy:
        exchange = GradientExchange.connect(proxy.address, session="s", device="a")
        proxy.cut_after_bytes = 50  # of the request
        exchange.join(SPECS, {}, Weights()).begin(1)
        exchange.close()
    with embedded_coordinator() as another:
        impatient = GradientExchange.connect(another.address, session="s", device="b", reconnect_deadline_s=0.2)
    with pytest.raises(ExchangeError, match="device 'b' lost the coordinator") as failure:
        impatient.join(SPECS, {}, Weights())
    assert failure.value.cause is Cause.UNREACHABLE
    impatient.close()


def test_another_protocol_version_is_refused(coordinator, monkeypatch):
    coordinator.create_session("s", SessionSettings(devices=1))
    monkeypatch.setattr("edge_client.exchange.remote.connector.PROTOCOL_VERSION", 99)
    with pytest.raises(ExchangeError, match="protocol version 99 and the coordinator version 1"):
        join(coordinator, "a")


def test_a_tensor_that_is_not_finite_is_never_sent(coordinator):
    coordinator.create_session("s", SessionSettings(devices=1))
    exchange = join(coordinator, "gateway-7")
    exchange.place.begin(1)
    with pytest.raises(NonFiniteGradientError, match="device 'gateway-7', step 0: the gradient of 'w'"):
        exchange.place.contribute(KEYS[0], torch.full((3, 2), float("inf")))


def test_a_waiting_device_is_released_when_another_fails(coordinator):
    coordinator.create_session("s", SessionSettings(devices=2, rejoin_deadline_s=0))
    a, b = join(coordinator, "a"), join(coordinator, "b")
    threading.Timer(0.3, b.close, kwargs={"failure": "out of memory"}).start()
    with pytest.raises(ExchangeError, match="device 'b' left in step 0: out of memory") as raised:
        exchange_once(a, tensors(0), 1)
    assert raised.value.cause is Cause.ABORTED
    a.close()


def test_a_coordinator_that_dies_ends_the_wait(coordinator):
    coordinator.create_session("s", SessionSettings(devices=2))
    a, _ = join(coordinator, "a"), join(coordinator, "b")
    a.place._link._reconnect_deadline_s = 0.5
    threading.Timer(0.3, coordinator._call, (coordinator._server._server.stop(0),)).start()
    with pytest.raises(ExchangeError, match="'a' lost the coordinator at"):
        exchange_once(a, tensors(0), 1)


def test_going_on_when_the_session_is_over_is_refused(coordinator):
    coordinator.create_session("s", SessionSettings(devices=1))
    exchange = join(coordinator, "a")
    exchange_once(exchange, tensors(0), 1)
    coordinator.abort("s", "enough")
    with pytest.raises(ExchangeError, match="enough"):
        exchange_once(exchange, tensors(0), 1)


def test_traffic_is_counted(coordinator):
    coordinator.create_session("s", SessionSettings(devices=1))
    exchange = join(coordinator, "a", weights=b"")
    before = exchange.traffic
    exchange_once(exchange, tensors(0), 1, evaluation=Evaluation(1, 2, 0.5))
    payload = 4 * (6 + 700 + 1)
    assert payload < exchange.traffic.sent - before.sent < payload + 200
    assert payload < exchange.traffic.received - before.received < payload + 200


def model_of(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def samples_of(device):
    rng = np.random.default_rng(device)
    x = torch.from_numpy(rng.normal(device, 1 + device, (8, 6)).astype(np.float32))
    return x, torch.from_numpy(rng.integers(0, 3, 8))


def train(coordinator, device, model, curvature="kfac", plan=EveryBatch, has_joined=None):
    x, y = samples_of(device)
    with GradientExchange.connect(coordinator.address, session="s", device=f"d{device}") as exchange:
        optimizer = NewtonOptimizer(model, lr=0.05, curvature=curvature, sync=plan(exchange))
        optimizer.join()
        if has_joined is not None:
            has_joined.set()
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.synchronise()
    return model.state_dict()


def assert_identical(states):
    for state in states[1:]:
        differing = [name for name, tensor in states[0].items() if not torch.equal(tensor, state[name])]
        assert not differing


@pytest.mark.filterwarnings("ignore:no curvature estimator")
@pytest.mark.parametrize("curvature", ["kfac", "eva"])
@pytest.mark.parametrize("plan", [EveryBatch, partial(LocalCurvature, sync_every=2)], ids=["shared", "local"])
def test_devices_with_different_data_end_with_identical_models(coordinator, curvature, plan):
    coordinator.create_session("s", SessionSettings(devices=3))
    models = [model_of(0) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(train, coordinator, i, model, curvature, plan) for i, model in enumerate(models)]
        assert_identical([future.result() for future in futures])


@pytest.mark.filterwarnings("ignore:no curvature estimator", "ignore:the estimator 'kfac' does not support")
def test_a_device_that_began_with_other_weights_ends_with_the_batch_of_the_others(coordinator):
    """Its own are given up once most have others, while it computes its first batch."""
    coordinator.create_session("s", SessionSettings(devices=3))
    models = [model_of(seed) for seed in (1, 0, 0)]
    has_joined = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(train, coordinator, 0, models[0], has_joined=has_joined)]
        assert has_joined.wait(30)
        futures += [pool.submit(train, coordinator, i, models[i]) for i in (1, 2)]
        states = [future.result() for future in futures]
    for state in states:
        del state["1.num_batches_tracked"]  # the batch that it gave up is not among its own
    assert_identical(states)


def test_a_device_that_is_told_to_heal_while_a_state_is_on_its_way_fetches_another(coordinator, monkeypatch):
    """The second one was not heard: the device went on from the first state, and the others waited for it."""
    coordinator.create_session("s", SessionSettings(devices=3, step_deadline_s=10))
    models = [model_of(seed) for seed in (1, 0, 0)]
    first, second, downloaded = threading.Event(), threading.Event(), []

    async def slow(*arguments):
        snapshot = await download(*arguments)
        downloaded.append(snapshot.step)
        if len(downloaded) == 1:  # that of the device whose weights are not those of most
            second.set()
            await asyncio.sleep(1.5)
        return snapshot

    monkeypatch.setattr("edge_client.exchange.remote.link.download", slow)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(train, coordinator, 0, models[0], has_joined=first)]
        assert first.wait(30)
        futures.append(pool.submit(train, coordinator, 1, models[1]))
        assert second.wait(30)
        futures.append(pool.submit(train, coordinator, 2, models[2]))
        states = [future.result() for future in futures]
    for state in states:
        del state["1.num_batches_tracked"]
    assert_identical(states)
    assert len(downloaded) == 3
