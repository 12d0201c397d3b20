"""Gradients of every batch under a privacy budget, with a real coordinator and devices in threads, masked and not."""

import functools
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import private_runs
import pytest
import torch
from private_runs import model_of
from torch import nn

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import GradientExchange, NewtonOptimizer, PrivateGradients, Probe, SampleGradients
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe_inputs import GaussianInputs
from edge_client.exchange import NonFiniteGradientError
from edge_client.privacy import PrivacyBudgetError
from edge_client.sync import LocalSteps, PrivateLocalSteps
from edge_client.training.settings import check_settings
from edge_client.training.trainer import Trainer

DEVICES = 3
budget_of = functools.partial(private_runs.budget_of, exchanges=4)


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


def probe_of():
    return Probe(GaussianInputs(torch.zeros(6), torch.ones(6)), nn.functional.cross_entropy, samples=64)


def batch_of(device, step):
    rng = np.random.default_rng((device, step))
    x = torch.from_numpy(rng.normal(device, 1, (8, 6)).astype(np.float32))
    return x, torch.from_numpy(rng.integers(0, 3, 8))


class Device:
    """One device, which trains as a user's own loop does."""

    def __init__(self, coordinator, number, budget, session="s", state=None, **passes):
        self.number, self.model = number, model_of()
        self.exchange = GradientExchange.connect(coordinator.address, session=session, device=f"d{number}")
        self.plan = PrivateGradients(self.exchange, budget, probe_of(), batches_per_pass=2, **passes)
        self.samples = None
        if budget.unit == "sample":
            self.samples = SampleGradients(self.model, nn.functional.cross_entropy, self.plan)
        self.optimizer = NewtonOptimizer(self.model, lr=0.05, sync=self.plan, averaging=None)
        if state is not None:
            self.optimizer.load_state_dict(state)

    def train(self, until):
        self.optimizer.join()
        while self.optimizer.current_step < until:
            x, y = batch_of(self.number, self.optimizer.current_step)
            self.optimizer.zero_grad()
            if self.samples is not None:
                self.samples.backward(x, y)
            else:
                nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.report(1.25)
            self.optimizer.step(samples=len(x))
        return self


def run(coordinator, until=4, budget=None, states=None, session="s", **settings):
    coordinator.create_session(session, SessionSettings(devices=DEVICES, step_deadline_s=20, **settings))

    def trained(number):
        device = Device(coordinator, number, budget or budget_of(), session, states and states[number])
        with device.exchange:
            return device.train(until)

    with ThreadPoolExecutor(DEVICES) as pool:
        return list(pool.map(trained, range(DEVICES)))


SAMPLES = {"unit": "sample", "batch_size": 8, "exchanges": 2}


@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize("options", [{}, SAMPLES], ids=["device", "sample"])
def test_devices_stay_identical_and_say_what_was_spent(coordinator, is_masked, options):
    ends = run(coordinator, budget=budget_of(**options), secure_aggregation=is_masked)
    weights = [end.model.state_dict() for end in ends]
    for other in weights[1:]:
        assert not [name for name, tensor in weights[0].items() if not torch.equal(tensor, other[name])]
    assert [end.plan.epsilon for end in ends] == [pytest.approx(8.0, rel=1e-6)] * DEVICES
    assert all("the privacy budget is spent" in end.plan.ended for end in ends)


@pytest.mark.parametrize("options", [{}, SAMPLES], ids=["device", "sample"])
def test_what_is_applied_has_the_mean_of_the_clipped_gradients_and_the_noise_of_all(coordinator, options):
    """In the first step, which has no curvature yet that gradients could be written in the coordinates of."""
    budget = budget_of(**options)
    ends = run(coordinator, until=1, budget=budget)
    applied = torch.cat([p.grad.flatten() for p in ends[0].model.parameters()]).double()
    model, clipped = model_of(), []
    for number in range(DEVICES):
        x, y = batch_of(number, 0)
        each = []
        for at in range(8) if budget.unit == "sample" else [slice(None)]:
            chosen = [at] if budget.unit == "sample" else at
            model.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            flat = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
            each.append(flat * min(1.0, budget.clip_norm / float(flat.norm())) / (8 if options else 1))
        clipped.append(sum(each))
    noise = applied - sum(clipped) / DEVICES
    share = budget.noise_multiplier * budget.sensitivity * math.sqrt(3 / 2) / DEVICES
    assert noise.square().mean().sqrt() == pytest.approx(share, rel=0.2)
    mean = sum(clipped) / DEVICES
    assert (applied @ mean) / (mean @ mean) == pytest.approx(1, abs=4 * share / float(mean.norm()))


def test_nothing_but_noised_gradients_of_one_sample_leaves(coordinator):
    coordinator.create_session("s", SessionSettings(devices=DEVICES))
    session = coordinator.directory.find("s").session
    seen, ended, contribute, complete = [], [], session.contribute, session.complete

    def contributed(device, samples, key, values):
        seen.append((session.fingerprint[key.tensor].kind, samples, values.copy()))
        contribute(device, samples, key, values)

    def completed(device, *args, **options):
        ended.append((*args, *options.values()))
        return complete(device, *args, **options)

    session.contribute, session.complete = contributed, completed
    with ThreadPoolExecutor(DEVICES) as pool:
        devices = [Device(coordinator, number, budget_of()) for number in range(DEVICES)]
        list(pool.map(lambda device: device.train(3), devices))
    for device in devices:
        device.exchange.close()
    assert {(kind, samples) for kind, samples, _ in seen} == {("noised", 1)}
    assert all(np.array_equal(values, np.rint(values)) for _, _, values in seen)
    assert "1.25" not in repr(ended)
    assert "evaluation=None" in repr(ended)


def test_a_batch_that_is_skipped_adds_its_noise_and_costs_nothing(coordinator):
    coordinator.create_session("s", SessionSettings(devices=DEVICES))

    def trained(number):
        device = Device(coordinator, number, budget_of())
        with device.exchange:
            device.optimizer.zero_grad()
            x, y = batch_of(number, 0)
            nn.functional.cross_entropy(device.model(x), y).backward()
            device.optimizer.step(samples=0)
            return device

    with ThreadPoolExecutor(DEVICES) as pool:
        ends = list(pool.map(trained, range(DEVICES)))
    applied = torch.cat([p.grad.flatten() for p in ends[0].model.parameters()]).double()
    budget = budget_of()
    share = budget.noise_multiplier * budget.clip_norm * math.sqrt(3 / 2) / DEVICES
    assert applied.square().mean().sqrt() == pytest.approx(share, rel=0.2)
    assert {end.plan.epsilon for end in ends} == {0.0}


def test_a_gradient_that_is_not_finite_leaves_nothing_and_the_next_batch_is_taken(coordinator):
    coordinator.create_session("s", SessionSettings(devices=DEVICES))

    def trained(number):
        device = Device(coordinator, number, budget_of())
        with device.exchange:
            device.optimizer.zero_grad()
            if number == 1:
                (device.model(torch.full((1, 6), math.nan)).sum()).backward()
                with pytest.raises(NonFiniteGradientError, match="gradient of '0.weight'"):
                    device.optimizer.step()
                assert device.plan.epsilon == 0
            return device.train(2)

    with ThreadPoolExecutor(DEVICES) as pool:
        ends = list(pool.map(trained, range(DEVICES)))
    assert len({end.plan.epsilon for end in ends}) == 1


@pytest.mark.parametrize("options", [{}, SAMPLES], ids=["device", "sample"])
def test_a_resumed_session_goes_on_counting(coordinator, options):
    budget = budget_of(**options)
    ends = run(coordinator, until=2, budget=budget)
    spent = {end.plan.epsilon for end in ends}
    states = [end.optimizer.state_dict() for end in ends]
    with embedded_coordinator() as second:
        again = run(second, budget=budget, states=states, first_step=2)
    assert len(spent) == 1
    assert spent.pop() < 8
    assert [end.plan.epsilon for end in again] == [pytest.approx(8.0, rel=1e-6)] * DEVICES


def test_samples_of_a_pass_that_is_begun_again_are_paid_again(coordinator):
    """A device that stopped within a pass does not know whether what it sent last has arrived."""
    budget = budget_of(**SAMPLES)
    states = [end.optimizer.state_dict() for end in run(coordinator, until=1, budget=budget)]
    with embedded_coordinator() as second:
        again = run(second, until=2, budget=budget, states=states, first_step=1)
    assert {end.optimizer.state_dict()["sync"]["privacy"]["exchanges"] for end in again} == {2}


def test_each_pass_over_the_data_is_paid_where_it_begins(coordinator):
    """From step 1 on: of the loop's own batches, or by the numbers of the steps, as a trainer's come."""
    spent = {}
    for follows_steps in (False, True):
        session = f"by steps: {follows_steps}"
        coordinator.create_session(session, SessionSettings(devices=DEVICES, first_step=1))

        def trained(number, session=session, follows_steps=follows_steps):
            device = Device(coordinator, number, budget_of(**SAMPLES), session, follows_steps=follows_steps)
            device.optimizer.load_state_dict(device.optimizer.state_dict() | {"sync": {"step": 1}})
            with device.exchange:
                return [device.train(until).plan._spending._ledger.exchanges for until in (2, 3, 4)]

        with ThreadPoolExecutor(DEVICES) as pool:
            spent[follows_steps] = list(pool.map(trained, range(DEVICES)))
    assert spent == {False: [[1, 1, 2]] * DEVICES, True: [[1, 2, 2]] * DEVICES}


def test_a_spent_budget_takes_no_further_batch(coordinator):
    coordinator.create_session("s", SessionSettings(devices=DEVICES))

    def too_long(number):
        device = Device(coordinator, number, budget_of())
        with device.exchange, pytest.raises(PrivacyBudgetError, match="larger epsilon"):
            device.train(5)

    with ThreadPoolExecutor(DEVICES) as pool:
        list(pool.map(too_long, range(DEVICES)))


def test_gradients_of_samples_are_clipped_in_the_coordinates_of_the_exchange(coordinator):
    """Later steps write them otherwise than the first one; the bound is on what is written."""
    coordinator.create_session("s", SessionSettings(devices=DEVICES))

    def trained(number):
        device = Device(coordinator, number, budget_of(**SAMPLES, clip_norm=0.01))
        with device.exchange:
            device.train(3)
            x, y = batch_of(number, 3)
            device.optimizer.zero_grad()
            device.samples.backward(x[:1], y[:1])
            taken = device.plan._total.clone()
            device.model.zero_grad()
            nn.functional.cross_entropy(device.model(x[:1]), y[:1]).backward()
            gradients = {p: p.grad for p in device.model.parameters()}
            return taken, device.plan._flat(gradients).double(), torch.cat([g.flatten() for g in gradients.values()])

    with ThreadPoolExecutor(DEVICES) as pool:
        for taken, whole, plain in pool.map(trained, range(DEVICES)):
            torch.testing.assert_close(taken, whole * (0.01 / whole.norm()), rtol=1e-4, atol=1e-8)
            assert not torch.allclose(whole.norm(), plain.double().norm(), rtol=0.01)


@pytest.mark.parametrize(
    ("samples", "text"),
    [(9, "the batch has 9 samples, and the privacy budget was made for 8"), (0, "call SampleGradients.backward")],
)
def test_a_batch_whose_samples_were_not_clipped_or_are_too_many_is_refused(coordinator, samples, text):
    coordinator.create_session("s", SessionSettings(devices=DEVICES))

    def refused(number):
        device = Device(coordinator, number, budget_of(**SAMPLES))
        with device.exchange:
            device.optimizer.zero_grad()
            x, y = torch.zeros(9, 6), torch.zeros(9, dtype=torch.long)
            if samples:
                device.samples.backward(x[:8], y[:8])
                with pytest.raises(PrivacyBudgetError, match=text):
                    device.samples.backward(x[8:], y[8:])
            else:
                nn.functional.cross_entropy(device.model(x), y).backward()
                with pytest.raises(PrivacyBudgetError, match=text):
                    device.optimizer.step()
            device.train(1)  # zero_grad has forgotten the batch

    with ThreadPoolExecutor(DEVICES) as pool:
        list(pool.map(refused, range(DEVICES)))


def test_a_device_that_comes_late_writes_its_gradients_as_the_others_do(coordinator):
    """It heals with the curvature that they have, and pays for the steps that it may have been in before."""
    settings = {"devices": DEVICES, "max_devices": DEVICES + 1, "rejoin_deadline_s": 30, "step_deadline_s": 20}
    coordinator.create_session("s", SessionSettings(**settings))
    budget, joined, started, last = budget_of(exchanges=60), threading.Event(), threading.Event(), 40
    devices = [Device(coordinator, number, budget) for number in range(DEVICES + 1)]

    def early(device):
        for step in range(1, last + 1):
            device.train(step)
            if step == 4:
                started.set()
            if step >= 4 and not joined.is_set():
                time.sleep(0.05)  # a snapshot is handed in between two steps
        return device

    def late(device):
        assert started.wait(30)
        device.optimizer.join()
        joined.set()
        return device.train(last)

    with ThreadPoolExecutor(DEVICES + 1) as pool:
        ends = list(pool.map(lambda device: (late if device is devices[-1] else early)(device), devices))
    weights = [end.model.state_dict() for end in ends]
    for device in devices:
        device.exchange.close()
    for other in weights[1:]:
        assert not [name for name, tensor in weights[0].items() if not torch.equal(tensor, other[name])]
    assert all(end.plan._common.whitening("0") is not None for end in ends)
    assert len({end.plan.epsilon for end in ends}) == 1


def test_what_another_plan_had_still_to_send_does_not_leave(coordinator):
    plan = LocalSteps()
    optimizer = NewtonOptimizer(model_of(), sync=plan)
    optimizer.zero_grad()
    state = optimizer.state_dict()
    state["sync"]["unsent"] = {("gradient", "0.weight"): {"error": torch.ones(240)}}
    device = Device(coordinator, 0, budget_of(), state=state)
    with device.exchange:
        assert "unsent" not in device.optimizer.state_dict()["sync"]


def test_what_tells_more_than_gradients_is_refused(coordinator):
    with GradientExchange.connect(coordinator.address, session="s", device="d0") as exchange:
        with pytest.raises(PrivacyBudgetError, match="buffer '1.num_batches_tracked'|buffer '1.running_mean'"):
            NewtonOptimizer(
                model_of(nn.BatchNorm1d(40)), sync=PrivateGradients(exchange, budget_of(), probe_of())
            ).join()
        measured = Probe(MeasuredInputs(torch.zeros(4, 6)), nn.functional.cross_entropy)
        with pytest.raises(PrivacyBudgetError, match="moments of the devices' data"):
            PrivateGradients(exchange, budget_of(), measured)
        with pytest.raises(PrivacyBudgetError, match="unit of the privacy budget is 'sample'"):
            PrivateLocalSteps(exchange, budget_of(**SAMPLES))
    with pytest.raises(PrivacyBudgetError, match="trains alone"):
        PrivateGradients(NewtonOptimizer(model_of())._sync._exchange, budget_of(), probe_of())


@pytest.mark.parametrize("unit", ["device", "sample"])
def test_training_ends_by_itself_once_the_budget_is_spent(coordinator, unit):
    values = {"cadence": "every-batch", "epsilon": 2.0, "clip-norm": 0.1, "noise-devices": 2, "steps": 4}
    if unit == "sample":
        values |= {"privacy-unit": "sample", "passes": 1, "batch-size": 350, "steps": 2, "partition": "iid"}
    settings = check_settings(values)
    coordinator.create_session("s", SessionSettings(devices=2, step_deadline_s=20))

    def trained(device):
        with GradientExchange.connect(coordinator.address, session="s", device=f"d{device}") as exchange:
            trainer = Trainer(settings, device, 2, exchange)
            return trainer.train(settings.steps + 3)

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(trained, range(2)))
    for report in reports:
        assert report.steps == settings.steps
        assert "the privacy budget is spent" in report.ended
        assert report.epsilon == pytest.approx(2.0, rel=1e-6)
        assert math.isnan(report.loss)  # nobody knows that of all
