"""Sessions under a privacy budget, with a real coordinator and devices in threads, masked and not."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from private_runs import budget_of, model_of
from torch import nn

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import GradientExchange, NewtonOptimizer, PrivateLocalSteps
from edge_client.exchange import ExchangeError
from edge_client.optim import TrustRegion
from edge_client.privacy import PrivacyBudgetError
from edge_client.sync import LocalSteps, Shared
from edge_client.training.settings import check_settings
from edge_client.training.trainer import Trainer


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


def batch_of(device, step):
    rng = np.random.default_rng((device, step))
    x = torch.from_numpy(rng.normal(device, 1, (8 + device, 6)).astype(np.float32))
    return x, torch.from_numpy(rng.integers(0, 3, 8 + device))


def train_batch(optimizer, model, device, step):
    x, y = batch_of(device, step)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.report(loss.item())
    optimizer.step()


def train(coordinator, device, steps=6, budget=None, state=None, model=None, **options):
    model = model_of() if model is None else model
    with GradientExchange.connect(coordinator.address, session="s", device=f"d{device}") as exchange:
        plan = PrivateLocalSteps(exchange, budget or budget_of(), 2, **options)
        optimizer = NewtonOptimizer(model, lr=0.05, sync=plan)
        if state is not None:
            optimizer.load_state_dict(state)
        optimizer.join()
        while optimizer.current_step < steps:  # a device that heals has taken batches that do not count
            train_batch(optimizer, model, device, optimizer.current_step)
    return model.state_dict(), optimizer.state_dict(), plan


def run(coordinator, devices=3, steps=6, states=None, budget=None, **settings):
    coordinator.create_session("s", SessionSettings(devices=devices, step_deadline_s=20, **settings))
    with ThreadPoolExecutor(devices) as pool:
        return list(pool.map(lambda d: train(coordinator, d, steps, budget, states and states[d]), range(devices)))


@pytest.mark.parametrize("is_masked", [True, False])
def test_devices_stay_identical_and_say_what_was_spent(coordinator, is_masked):
    ends = run(coordinator, secure_aggregation=is_masked)
    first = ends[0][0]
    for weights, _, plan in ends:
        assert not [name for name, tensor in first.items() if not torch.equal(tensor, weights[name])]
        assert plan.epsilon == pytest.approx(8.0, rel=1e-6)
        assert "3 exchanges took epsilon 8" in plan.ended
    # The noise of three devices' shares, in each of three rounds: it is far larger than the moves here.
    moved = torch.cat([(first[n] - w).flatten() for n, w in model_of().state_dict().items()])
    budget = budget_of()
    of_round = budget.noise_multiplier * budget.clip_norm * math.sqrt(3 / 2) / 3
    assert moved.norm() / math.sqrt(len(moved)) == pytest.approx(of_round * math.sqrt(3), rel=0.2)


def test_nothing_but_noised_moves_of_one_sample_leaves(coordinator):
    coordinator.create_session("s", SessionSettings(devices=3))
    session = coordinator.directory.find("s").session
    seen, ended, contribute, complete = [], [], session.contribute, session.complete

    def contributed(device, samples, key, values):
        seen.append((session.fingerprint[key.tensor].kind, samples, values.copy()))
        contribute(device, samples, key, values)

    def completed(device, *args, **options):
        ended.append((*args, *options.values()))
        return complete(device, *args, **options)

    session.contribute, session.complete = contributed, completed
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda d: train(coordinator, d), range(3)))
    assert {(kind, samples) for kind, samples, _ in seen} == {("noised", 1)}
    assert all(np.array_equal(values, np.rint(values)) for _, _, values in seen)
    assert len(ended) == 9
    text = repr(ended)
    assert "loss=nan" in text
    assert "evaluation=None" in text


def test_a_spent_budget_takes_no_further_batch(coordinator):
    coordinator.create_session("s", SessionSettings(devices=3))

    def too_long(device):
        with pytest.raises(PrivacyBudgetError, match="larger epsilon"):
            train(coordinator, device, steps=7)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(too_long, range(3)))


def test_a_resumed_session_goes_on_counting(coordinator):
    ends = run(coordinator, steps=4)
    spent = [end[2].epsilon for end in ends]
    with embedded_coordinator() as second:
        again = run(second, states=[end[1] for end in ends], first_step=4)
    assert all(now[2].epsilon > before for now, before in zip(again, spent, strict=True))
    assert all(now[2].ended for now in again)


def test_a_device_without_its_last_state_has_spent_what_the_session_has(coordinator):
    """It heals, and counts the rounds that it may have told; what it sends again is paid once."""
    states = [end[1] for end in run(coordinator, steps=4)]
    with embedded_coordinator() as second:
        again = run(second, states=[None, *states[1:]], first_step=4)
    assert [end[2].epsilon for end in again] == [pytest.approx(8.0, rel=1e-6)] * 3


def test_steps_of_another_session_are_paid_too(coordinator):
    """A second session begins at step 0 again, with states that have paid for its numbers in the first one."""
    states = [end[1] for end in run(coordinator, steps=4)]
    for state in states:
        state["sync"]["step"] = 0
    with embedded_coordinator() as second:
        again = run(second, steps=2, states=states)
    assert {end[1]["sync"]["privacy"]["exchanges"] for end in again} == {3}


def test_what_was_trained_without_a_budget_is_no_part_of_it(coordinator):
    coordinator.create_session("s", SessionSettings(devices=3, first_step=40))
    state = NewtonOptimizer(model_of()).state_dict() | {"sync": {"step": 40}}
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(lambda d: train(coordinator, d, steps=42, state=copy.deepcopy(state)), range(3)))
    assert {end[1]["sync"]["privacy"]["exchanges"] for end in ends} == {1}


def test_a_state_for_other_devices_has_neither_momenta_nor_curvature(coordinator):
    coordinator.create_session("s", SessionSettings(devices=3))
    models, dumps = [model_of() for _ in range(3)], []

    def train_and_dump(device):
        model = models[device]
        with GradientExchange.connect(coordinator.address, session="s", device=f"d{device}") as exchange:
            optimizer = NewtonOptimizer(model, lr=0.05, momentum=0.9, sync=PrivateLocalSteps(exchange, budget_of(), 2))
            for step in range(3):
                train_batch(optimizer, model, device, step)
            dumps.append(optimizer._saved.take_common())
            assert optimizer.state_dict()["state"]  # its own has them
            train_batch(optimizer, model, device, 3)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(train_and_dump, range(3)))
    for dump in dumps:
        assert dump["state"] == {}
        assert dump["curvature"] == {}


def test_a_session_whose_quorum_is_too_small_for_the_noise_is_refused(coordinator):
    coordinator.create_session("s", SessionSettings(devices=2))

    def refused(device):
        with pytest.raises(PrivacyBudgetError, match=r"noise of 3 devices .* quorum is 2"):
            train(coordinator, device)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(refused, range(2)))


def test_a_robust_aggregator_is_refused(coordinator):
    coordinator.create_session("s", SessionSettings(devices=3, aggregator="median"))
    with pytest.raises(ExchangeError, match="privacy budget.*aggregator is median"):
        train(coordinator, 0)


@pytest.mark.parametrize(
    ("layers", "options", "text"),
    [
        ((nn.BatchNorm1d(40),), {}, "buffer '1.num_batches_tracked'|buffer '1.running_mean'"),
        ((), {"scope": Shared()}, "scope 'shared' tells other devices"),
    ],
)
def test_what_tells_more_than_moves_is_refused(coordinator, layers, options, text):
    coordinator.create_session("s", SessionSettings(devices=3))
    with pytest.raises(PrivacyBudgetError, match=text):
        train(coordinator, 0, model=model_of(*layers), **options)


def test_what_another_plan_had_still_to_send_does_not_leave(coordinator):
    """Neither a round that waits for its result nor what a codec had rounded away: nobody has noised them."""
    plan = LocalSteps(overlap=True)
    optimizer = NewtonOptimizer(model_of(), sync=plan)
    optimizer.zero_grad()
    state = optimizer.state_dict()
    state["sync"]["sent"] = {"batches": 2}
    state["sync"]["unsent"] = {("delta", "0.weight"): {"error": torch.ones(240)}}
    exchange = GradientExchange.connect(coordinator.address, session="s", device="d0")
    with exchange:
        private = NewtonOptimizer(model_of(), sync=PrivateLocalSteps(exchange, budget_of(), 2))
        private.load_state_dict(state)
        saved = private.state_dict()["sync"]
    assert "sent" not in saved
    assert not saved["unsent"]


def test_training_ends_by_itself_once_the_budget_is_spent(coordinator):
    values = {"cadence": "local-steps", "local-steps": 2, "epsilon": 2.0, "clip-norm": 0.1, "noise-devices": 2}

    def trained(at):
        device, steps, state = at
        with GradientExchange.connect(coordinator.address, session=f"to {steps}", device=f"d{device}") as exchange:
            settings = check_settings({**values, "steps": steps, "batch-size": 8})
            trainer = Trainer(settings, device, 2, exchange, weights=None, state=state)
            taken = []
            report = trainer.train(steps - trainer.optimizer.current_step, taken.append)
            return report, taken, trainer.state_dict()

    coordinator.create_session("to 4", SessionSettings(devices=2))
    coordinator.create_session("to 8", SessionSettings(devices=2, first_step=4))
    with ThreadPoolExecutor(2) as pool:
        first = list(pool.map(trained, [(device, 4, None) for device in range(2)]))
        again = list(pool.map(trained, [(device, 8, first[device][2]) for device in range(2)]))
    for report, taken, _ in first:
        assert not report.ended
        assert report.epsilon == pytest.approx(2.0, rel=1e-6)
        assert [step.epsilon for step in taken] == sorted(step.epsilon for step in taken)
        assert all(math.isfinite(step.session_loss) for step in taken)  # the device's own
    for report, taken, _ in again:
        assert not taken
        assert "the privacy budget is spent: 2 exchanges took epsilon 2 of 2" in report.ended


def test_a_damping_that_follows_losses_is_refused(coordinator):
    trust = TrustRegion(adapt_every=2)
    with (
        GradientExchange.connect(coordinator.address, session="s", device="d0") as exchange,
        pytest.raises(PrivacyBudgetError, match="adapt_every compares losses"),
    ):
        NewtonOptimizer(model_of(), trust=trust, sync=PrivateLocalSteps(exchange, budget_of(), 2))
