"""Devices whose weights rounding has moved apart: they are averaged, and nobody heals or is left out."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.functional import cross_entropy

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.sync.replica import parameters_digest
from tests.support.local_devices import Session, assert_equal, data, model

PART = 1e-4
"""Of each parameter's norm, by which one device is moved: a third of what is ever taken for rounding."""


def move_apart(tensors, seed=0):
    """Change all elements a little, as rounding does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise, alpha=PART * float(tensor.norm() / noise.norm()))


def distance(devices):
    """Return how far the first two devices are from each other, as a part of the norm of their parameters."""
    one, other = (torch.cat([p.detach().flatten() for p in device.model.parameters()]) for device in devices[:2])
    return float((one - other).norm() / one.norm())


class Batches:
    """A device that exchanges after every batch."""

    def __init__(self, address, number, state=None):
        self.number, self.model = number, model()
        self.exchange = GradientExchange.connect(address, session="s", device=f"d{number}", reconnect_deadline_s=20)
        self.optimizer = NewtonOptimizer(self.model, sync=EveryBatch(self.exchange))
        if state is not None:
            self.model.load_state_dict(state[0])
            self.optimizer.load_state_dict(state[1])

    def train(self, until):
        while self.optimizer.current_step < until:
            x, y = data(self.number, self.optimizer.current_step)
            self.optimizer.zero_grad()
            cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        return self


@pytest.mark.parametrize("is_restarted", [False, True])
def test_an_exchange_after_every_batch_averages_what_rounding_moved(is_restarted):
    settings = SessionSettings(devices=3, codec="fp32", digest_every=4)
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(3) as pool:
        coordinator.create_session("s", settings)
        devices = [Batches(coordinator.address, number) for number in range(3)]
        list(pool.map(lambda device: device.train(3), devices))
        move_apart(devices[1].model.parameters())
        list(pool.map(lambda device: device.train(5), devices))  # the next step averages
        assert distance(devices) > 0.5 * PART
        if is_restarted:
            states = [(device.model.state_dict(), device.optimizer.state_dict()) for device in devices]
            for device in devices:
                device.exchange.close("restarted")
            devices = [Batches(coordinator.address, number, state) for number, state in enumerate(states)]
        list(pool.map(lambda device: device.train(14), devices))
        # The momentum of the steps before keeps a trace of them.
        assert distance(devices) < 0.05 * PART
        statistics = coordinator.directory.find("s").chronicle.statistics
        assert not [incident for incident in statistics.incidents if "diverged" in incident.text]
        for device in devices:
            device.exchange.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_round_of_local_steps_carries_the_anchor_when_rounding_moved_it(overlap):
    with Session(codec="int4", digest_every=4, rejoin_deadline_s=30) as session:
        devices = [session.device(number, overlap=overlap) for number in range(3)]
        session.all(lambda device: device.train(4))
        anchor = devices[1].plan._anchor
        move_apart([anchor[name] for name, _ in devices[1].model.named_parameters()])
        session.all(lambda device: device.train(24))
        steps = [step for step, _ in devices[0].seen]
        apart = {
            step
            for device in devices[1:]
            for (step, one), (_, two) in zip(devices[0].seen, device.seen, strict=True)
            if any(not torch.equal(one[name], two[name]) for name, _ in device.model.named_parameters())
        }
        assert apart  # until the comparison, and the exchange after it
        assert max(apart) < steps[-3]
        for device in devices:
            device.seen = device.seen[-3:]
        assert_equal(devices, rounds=3)
        statistics = session.coordinator.directory.find("s").chronicle.statistics
        assert not [incident for incident in statistics.incidents if "diverged" in incident.text]


def test_a_device_that_is_far_off_heals_and_is_named_with_layer_and_amount():
    with Session(codec="fp32", digest_every=2, rejoin_deadline_s=30) as session:
        devices = [session.device(number) for number in range(3)]
        session.all(lambda device: device.train(2))
        with torch.no_grad():
            devices[1].plan._anchor["3.weight"][2, 1] += 1e-2
        session.all(lambda device: device.train(10))
        statistics = session.coordinator.directory.find("s").chronicle.statistics
        (text,) = {incident.text for incident in statistics.incidents if "diverged" in incident.text}
        assert "device 'd1' diverged: before step 2 its '3' differed from that of most by 0.01," in text
        assert len({parameters_digest(device.model) for device in devices}) == 1


def test_like_machines_never_send_their_weights():
    with Session(codec="fp32", digest_every=2) as session:
        devices = [session.device(number) for number in range(3)]
        sent = []
        place_of = devices[0].plan
        session.all(lambda device: device.train(2))
        contribute = place_of._membership.contribute
        place_of._membership.contribute = lambda key, value: (sent.append(key), contribute(key, value))
        session.all(lambda device: device.train(12))
        assert {kind for kind, _ in sent} == {"delta", "parameter"}  # buffers
