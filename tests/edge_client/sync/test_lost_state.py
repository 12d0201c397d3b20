"""A device that lost its state is the first in a later session of its fleet: the others' state replaces its own."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from local_devices import SCOPES, model, take

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.sync import LocalSteps

PLANS = {
    "every batch": lambda exchange, number: EveryBatch(exchange),
    "every batch, in the step": lambda exchange, number: EveryBatch(exchange, whiten=True, overlap=False),
    "local steps": lambda exchange, number: LocalSteps(exchange, 2),
    "blend": lambda exchange, number: LocalSteps(exchange, 2, scope=SCOPES["blend of a measured probe"](number)),
}


def device(address, number, make, seed=0):
    exchange = GradientExchange.connect(address, session="s", device=f"d{number}", reconnect_deadline_s=20)
    return exchange, NewtonOptimizer(model(seed), sync=make(exchange, number))


def train(optimizer, number, until):
    while optimizer.current_step < until:
        take(optimizer, number)
    optimizer.synchronise()


@pytest.mark.parametrize("plan", PLANS)
def test_what_it_sent_before_the_others_came_counts_no_more(plan):
    make = PLANS[plan]
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(1) as pool:
        coordinator.create_session("s", SessionSettings(devices=1))
        exchange, before = device(coordinator.address, 0, make)
        with exchange:
            train(before, 0, until=4)

        coordinator.create_session("s", SessionSettings(devices=2, first_step=before.current_step, rejoin_deadline_s=0))
        session = coordinator.directory.find("s").session
        first, fresh = device(coordinator.address, 1, make, seed=3)
        second, trained = device(coordinator.address, 0, make)
        trained._model.load_state_dict(before._model.state_dict())
        trained.load_state_dict(before.state_dict())
        with first, second:
            going = pool.submit(train, fresh, 1, until=8)
            while not session.step.contributions and not going.done():
                time.sleep(0.01)
            train(trained, 0, until=8)
            going.result()
    for name, tensor in trained._model.named_parameters():
        assert torch.equal(tensor, fresh._model.get_parameter(name)), name
    begun = before._model[0].weight
    assert (trained._model[0].weight - begun).norm() < 0.2 * begun.norm()
