"""What breaks in the middle of a masked step: connections, devices that are started again, too few that reveal."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from test_secure_aggregation import PLANS, assert_identical, flat, model_of, run, samples_of, silent, until
from torch import nn

from benchmarks.shared.tcp_proxy import TcpProxy
from coordinator.serving.server import embedded_coordinator
from coordinator.session.decisions import KeysWanted, StepCommitted
from coordinator.session.masked_round import MaskingPhase
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


def train(address, device, model, steps=6, act=lambda optimizer, step: None, plan=EveryBatch):
    with GradientExchange.connect(address, session="s", device=f"d{device}", reconnect_deadline_s=20) as exchange:
        optimizer = NewtonOptimizer(model, lr=0.05, sync=plan(exchange))
        while optimizer.current_step < steps:
            step = optimizer.current_step
            act(optimizer, step)
            x, y = samples_of(device, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.synchronise()
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def phase_of(coordinator):
    of = coordinator.directory.find("s").session.masking._round
    return None if of is None else (of.step, of.phase)


@pytest.mark.parametrize("phase", MaskingPhase)
def test_a_connection_that_breaks_at_any_point_of_a_round_changes_nothing(coordinator, phase):
    """It breaks when d0 is told, or asked for, what begins the phase; d0's answer may be lost with it."""
    said = {MaskingPhase.KEYS: "keys_wanted", MaskingPhase.CONTRIBUTIONS: "maskers", MaskingPhase.SHARES: "unmask"}
    coordinator.create_session("s", SessionSettings(devices=3, step_deadline_s=20, secure_aggregation=True))
    with closing(TcpProxy(coordinator.address)) as proxy, ThreadPoolExecutor(3) as pool:
        cuts = iter([3])

        def act(optimizer, step):
            if step != 1:
                return
            masking = optimizer._sync._membership._masking
            answer = masking.answer

            def cutting(frame):
                result = answer(frame)
                if frame.HasField(said[phase]) and frame.step == 3 and next(cuts, None):
                    proxy.cut()
                return result

            masking.answer = cutting
            ahead = masking.keys_ahead  # of step 3 there are none, so that d0 is asked for them
            masking.keys_ahead = lambda step, circle: None if step == 3 else ahead(step, circle)

        ways = [proxy.address, coordinator.address, coordinator.address]
        acts = [act, lambda o, s: None, lambda o, s: None]
        models = [model_of() for _ in range(3)]
        states = list(pool.map(lambda d: train(ways[d], d, models[d], act=acts[d]), range(3)))
        assert next(cuts, None) is None
    assert_identical(states)
    with embedded_coordinator() as other:
        expected = run(other, devices=3, secure_aggregation=True)
    torch.testing.assert_close(flat(states[0]), flat(expected[0]), rtol=0, atol=0)


def test_a_step_whose_sum_cannot_be_unmasked_is_lost_and_not_begun_anew(coordinator):
    """Begun anew it could be in two sums. Two of three do not reveal."""
    acts = {d: silent(d)[d] for d in range(2)}
    coordinator.create_session("s", SessionSettings(devices=3, step_deadline_s=1, secure_aggregation=True))
    committed = commits_of(coordinator)
    models = [model_of() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        futures = [
            pool.submit(train, coordinator.address, d, models[d], 6, acts.get(d, lambda o, s: None)) for d in range(3)
        ]
        assert_identical([future.result() for future in futures])
    lost = [each.step for each in committed if not each.devices]
    assert lost == [3]
    assert [each.step for each in committed[:6]] == [0, 1, 2, 3, 4, 5]


def declining(optimizer, step):
    """As a device that has revealed in step 4, or contributed in another circle, before the coordinator went down."""
    if step == 2:
        once = optimizer._sync._membership._masking._once
        may_mask = once.may_mask
        once.may_mask = lambda step, circle: step != 4 and may_mask(step, circle)


@pytest.mark.parametrize("plan", PLANS)
def test_a_step_in_which_too_few_may_mask_again_is_lost_at_once(coordinator, plan):
    coordinator.create_session("s", SessionSettings(devices=3, step_deadline_s=60, secure_aggregation=True))
    committed = commits_of(coordinator)
    models = [model_of() for _ in range(3)]
    acts = [declining, declining, lambda optimizer, step: None]
    with ThreadPoolExecutor(3) as pool:
        states = pool.map(lambda d: train(coordinator.address, d, models[d], 12, acts[d], PLANS[plan]), range(3))
        assert_identical(list(states))
    assert [each.step for each in committed if not each.devices] == [4]
    assert len({each.batches for each in committed if each.step < 10}) == 1


def test_as_long_as_the_circle_stays_keys_are_asked_for_once(coordinator):
    coordinator.create_session("s", SessionSettings(devices=3, step_deadline_s=20, secure_aggregation=True))
    mail, asked = coordinator.directory.find("s")._masking_mail, []
    send = mail.send
    mail.send = lambda decision: (asked.append(decision) if isinstance(decision, KeysWanted) else None, send(decision))
    models = [model_of() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert_identical(list(pool.map(lambda d: train(coordinator.address, d, models[d]), range(3))))
    assert [each.step for each in asked] == [0]


def commits_of(coordinator):
    """Return a list of the steps that commit from now on."""
    room, committed = coordinator.directory.find("s"), []
    announce = room._announce

    def kept(decision):
        if isinstance(decision, StepCommitted):
            committed.append(decision)
        announce(decision)

    room._announce = kept
    return committed


def test_a_device_that_is_started_again_in_a_round_delays_nobody(coordinator):
    """It has other keys then: the step goes on without it, and the next one with it."""
    coordinator.create_session(
        "s", SessionSettings(devices=4, quorum=3, step_deadline_s=60, heartbeat_s=1, lease_s=4, secure_aggregation=True)
    )
    started, saved = [], {}
    models = [model_of() for _ in range(4)] + [model_of(7)]

    def act(optimizer, step):
        if step == 3 and not started:
            until(lambda: phase_of(coordinator) == (3, MaskingPhase.CONTRIBUTIONS))
            saved.update(model=optimizer._model.state_dict(), optimizer=optimizer.state_dict())
            started.append(True)
            # As if it were killed: nothing is said to the coordinator.
            raise SystemExit

    def restarted():
        exchange = GradientExchange.connect(coordinator.address, session="s", device="d0")
        model = models[0]
        optimizer = NewtonOptimizer(model, lr=0.05, sync=EveryBatch(exchange))
        try:
            while optimizer.current_step < 3:
                x, y = samples_of(0, optimizer.current_step)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            act(optimizer, 3)
        except SystemExit:
            exchange._membership._link._is_leaving = True
            exchange._loop.call(exchange._close(), 5)
            exchange._loop.stop()
        model = models[4]
        model.load_state_dict(saved["model"])
        with GradientExchange.connect(coordinator.address, session="s", device="d0") as exchange:
            optimizer = NewtonOptimizer(model, lr=0.05, sync=EveryBatch(exchange))
            optimizer.load_state_dict(saved["optimizer"])
            while optimizer.current_step < 8:
                x, y = samples_of(0, optimizer.current_step)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            optimizer.synchronise()
        return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}

    def slow(optimizer, step):
        if step == 3:
            until(lambda: started)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(restarted)]
        futures += [pool.submit(train, coordinator.address, d, models[d], 8, slow) for d in range(1, 4)]
        assert_identical([future.result() for future in futures])
