"""Devices that take local steps in a session of a real coordinator, each in a thread of its own."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from edgenewton.common.loop_thread import LoopThread
from torch import nn
from torch.nn.functional import cross_entropy

from coordinator.serving.server import CoordinatorServer, embedded_coordinator
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.record import Record
from edge_client import GradientExchange, NewtonOptimizer
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe import Probe
from edge_client.curvature.probe_inputs import GaussianInputs
from edge_client.sync import LocalSteps, Own, Probed, Shared
from edge_client.sync.model_tensors import copies

DEVICES = 3


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def plain_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def wide_model(seed=0):
    """Return one whose parts are large enough for every codec."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 3))


def samples_of(device):
    return 6 + 2 * device


def data(device, batch):
    generator = torch.Generator().manual_seed(1000 * device + batch)
    n = samples_of(device)
    return torch.randn(n, 6, generator=generator) + device, torch.randint(0, 3, (n,), generator=generator)


def probe(device=None):
    """Return a common probe; its inputs are measured on a device, or known."""
    inputs = GaussianInputs(torch.zeros(6), torch.ones(6)) if device is None else MeasuredInputs(data(device, 0)[0])
    return Probe(inputs, cross_entropy, samples=8)


def own(device):
    return Own()


def take(optimizer, device, bad=False):
    """Train one batch; of a bad one the inputs are NaN."""
    x, y = data(device, optimizer.current_step)
    optimizer.zero_grad()
    loss = cross_entropy(optimizer._model(x * float("nan") if bad else x), y)
    loss.backward()
    optimizer.report(loss.item())
    optimizer.step()


def of_weights(trained):
    return {name: tensor.clone() for name, tensor in trained.state_dict().items()}


class Device:
    """One device of a session, to be used by a thread of its own."""

    def __init__(
        self, address, number, trained=None, scope=own, every=2, state=None, outer=None, overlap=False, **options
    ):
        self.number, self.model = number, model() if trained is None else trained
        self.exchange = GradientExchange.connect(address, session="s", device=f"d{number}", reconnect_deadline_s=20)
        self.plan = LocalSteps(self.exchange, every, overlap=overlap, outer=outer, scope=scope(number))
        self.optimizer = NewtonOptimizer(self.model, sync=self.plan, **options)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.seen = []
        """The weights after each exchange, by the number of the batch that comes next; with overlap the anchors."""

    def state(self):
        """Return what a file would have of it."""
        file = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def train(self, until, bad=()):
        while self.optimizer.current_step < until:
            take(self.optimizer, self.number, self.optimizer.current_step in bad)
            if not self.plan._round.batches:
                self.seen.append((self.plan._anchor_step, copies(self.plan._anchor)))
        return self

    def close(self):
        self.exchange.close()


class Session:
    """A coordinator with a session, and threads for its devices."""

    def __init__(self, **settings):
        self.settings = {"devices": DEVICES, "codec": "fp32", "rejoin_deadline_s": 0, "digest_every": 0} | settings

    def __enter__(self):
        self._coordinator = embedded_coordinator()
        self.coordinator = self._coordinator.__enter__()
        self.coordinator.create_session("s", SessionSettings(**self.settings))
        self.pool = ThreadPoolExecutor(2 * DEVICES)
        self.devices = []
        return self

    def __exit__(self, *error):
        self.pool.shutdown(wait=False)
        for device in self.devices:
            device.exchange.close("over")
        self._coordinator.__exit__(*error)

    def device(self, number, **options):
        self.devices.append(Device(self.coordinator.address, number, **options))
        return self.devices[-1]

    def first_slice_of(self, device):
        """Return an event that is set once a slice of a device has come."""
        session, event = self.coordinator.directory.find("s").session, threading.Event()
        contribute = session.contribute

        def watched(sender, *slice_of):
            contribute(sender, *slice_of)
            if sender == device:
                event.set()

        session.contribute = watched
        return event

    def restart(self, **options):
        """Put in each device's place a new one, with other weights, that goes on from its state."""
        states = self.all(Device.state)
        for device in self.devices:
            device.exchange.close("restarted")
        self.devices = []
        for number, state in enumerate(states):
            self.device(number, trained=model(seed=8), state=state, **options)

    def let_in(self, late, last, by=2):
        """Let a device join while the others, which have trained `last` batches, go on; return how many they have then.

        A state is handed in between two exchanges, so they must not stop before the device has one.
        """
        others = [device for device in self.devices if device is not late]
        joined = self.pool.submit(late.optimizer.join)
        while not joined.done() and last < 1000:
            last += by
            self.all(lambda device, last=last: device.train(last), others)
        joined.result(30)
        return last

    def all(self, act, devices=None):
        """Let the devices do something at once; return what they did."""
        return list(self.pool.map(act, self.devices if devices is None else devices))


class Recorded:
    """A coordinator with a record, on a thread of its own."""

    def __init__(self, path, port=0):
        self._loop, self._record = LoopThread("coordinator"), Record(path)
        self._loop.call(self._start(port), 10)
        self.directory, self.address, self.port = self._server.directory, self._server.address, self._server.port

    async def _start(self, port):
        self._server = CoordinatorServer(port=port, record=self._record)
        for session in self._record.resumable():
            self._server.directory.resume(session)
        await self._server.start()

    async def _create(self, settings):
        self.directory.create("s", settings)

    def create_session(self, settings):
        self._loop.call(self._create(settings), 10)

    def suspend(self):
        self._loop.call(self._server.stop("restarted", 0.1, suspend=True), 10)
        self._loop.stop()
        self._record.close()


def averaged(weights):
    """Return what is averaged of a model: whole numbers, as how often it was called, are each device's own."""
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}


def assert_equal(devices, *, rounds=None):
    """Check that the devices had the same bits after every exchange."""
    for other in devices[1:]:
        assert [step for step, _ in other.seen] == [step for step, _ in devices[0].seen]
        for (step, one), (_, two) in zip(devices[0].seen, other.seen, strict=True):
            assert all(torch.equal(one[name], two[name]) for name in one), f"they differ before batch {step}"
    assert rounds is None or len(devices[0].seen) == rounds


def assert_close(one, other, **tolerance):
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


SCOPES = {
    "own": own,
    "shared": lambda _: Shared(),
    "probe": lambda _: Probed(probe()),
    "blend of a measured probe": lambda device: Probed(probe(device), 0.5),
}


def moves_sent(device):
    """Record the moves of a device's rounds, flat and by part, as they are handed to the exchange."""
    moves, contribute = [], device.plan._membership.contribute

    def recorded(key, value):
        if key[0] == "delta":
            moves.append((device.optimizer.current_step, key, value.clone()))
        contribute(key, value)

    device.plan._membership.contribute = recorded
    return moves


def left_over(device):
    """Return what a device has still to send, by part."""
    state = device.plan.state_dict()["unsent"]
    return {
        name.removeprefix("delta of ").removesuffix(" from 0"): remembered["feedback"]["error"]
        for name, remembered in state.items()
    }


def left_over_of(state):
    return {
        name.removeprefix("delta of ").removesuffix(" from 0"): remembered["feedback"]["error"]
        for name, remembered in state["optimizer"]["sync"]["unsent"].items()
    }
