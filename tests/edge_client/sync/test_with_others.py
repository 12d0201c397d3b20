"""What a device does otherwise than the others in a session, through a real coordinator."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.exchange import ExchangeError

STEPS = 5


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data(device: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * device + step)
    return torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def train(address, device, trained, *, before=lambda optimizer, step: None, bad=None, plan=None, **options):
    """Train on one device; its batch of step `bad` has NaN. Return the results of all steps."""
    results = []
    with GradientExchange.connect(address, session="s", device=f"d{device}") as exchange:
        optimizer = NewtonOptimizer(trained, sync=EveryBatch(exchange, **(plan or {})), **options)
        for step in range(STEPS):
            before(optimizer, step)
            x, y = data(device, step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(trained(x * float("nan") if step == bad else x), y)
            loss.backward()
            optimizer.report(loss.item())
            optimizer.step()
            results.append(optimizer.last_result)
    return results


def train_two(*of_each) -> tuple[list[nn.Module], list]:
    """Train on two devices with options of their own; return the models, and results or errors."""
    models = [model(), model()]
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(2) as pool:
        coordinator.create_session("s", SessionSettings(devices=2, rejoin_deadline_s=0))
        runs = [
            pool.submit(train, coordinator.address, device, models[device], **options)
            for device, options in enumerate(of_each)
        ]
        return models, [run.exception() or run.result() for run in runs]


def assert_equal(models) -> None:
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_bad_batch_of_one_device_is_the_others_step():
    models, (first, second) = train_two({"nonfinite": "skip", "bad": 2}, {"nonfinite": "skip"})
    assert_equal(models)
    assert [result.samples for result in first] == [result.samples for result in second] == [16, 16, 8, 16, 16]


def test_when_it_is_sent_changes_nothing():
    at_once, _ = train_two({}, {})
    in_the_step, _ = train_two({"plan": {"overlap": False}}, {"plan": {"overlap": False}})
    assert_equal(at_once)
    assert_equal([at_once[0], in_the_step[1]])


def test_gradients_are_clipped_before_they_leave():
    models, _ = train_two({"plan": {"clip_grad_norm": 1e-3}}, {"plan": {"clip_grad_norm": 1e-3}})
    assert_equal(models)


def test_a_scheduler_that_differs_is_said_in_its_step():
    def decay(optimizer, step):
        if step == 3:
            optimizer.param_groups[0]["lr"] = 0.01

    _, outcomes = train_two({}, {"before": decay})
    assert all(isinstance(outcome, ExchangeError) for outcome in outcomes)
    assert any("step 3" in str(outcome) and "lr" in str(outcome) for outcome in outcomes)


def test_a_scheduler_that_all_share_is_fine():
    def decay(optimizer, step):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5**step

    models, outcomes = train_two({"before": decay}, {"before": decay})
    assert_equal(models)
    assert [result.step for result in outcomes[0]] == list(range(STEPS))


def test_what_is_frozen_on_one_device_alone_is_said():
    def freeze(optimizer, step):
        if step == 2:
            optimizer.param_groups[0]["params"][0].requires_grad_(False)

    models, _ = train_two({"before": freeze}, {"before": freeze})
    assert_equal(models)
    _, outcomes = train_two({"before": freeze}, {})
    assert any("frozen parameters" in str(outcome) for outcome in outcomes)


class Functional(nn.Module):
    """Uses a layer's weight by itself, if it is told to."""

    def __init__(self, uses_it) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.uses_it = nn.Linear(6, 6), nn.Linear(6, 3), uses_it

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(nn.functional.linear(h, self.first.weight) + h if self.uses_it else h)


@pytest.mark.filterwarnings("ignore:layer first")
def test_devices_give_a_layers_curvature_up_together():
    models = [Functional(True), Functional(False)]
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(2) as pool:
        coordinator.create_session("s", SessionSettings(devices=2))
        list(pool.map(lambda device: train(coordinator.address, device, models[device]), range(2)))
    assert_equal(models)


def test_a_backward_that_is_thrown_away_after_it_has_left_is_said():
    def waste(optimizer, step):
        if step == 2:
            trained = optimizer._model
            trained(torch.ones(4, 6)).sum().backward()
            with pytest.raises(RuntimeError, match="no step followed has sent its gradients.*overlap=False"):
                optimizer.zero_grad()

    models, (_, second) = train_two({"before": waste}, {})
    assert_equal(models)
    # Who goes on after the error has skipped the step that was on.
    assert [result.samples for result in second] == [16, 16, 8, 16, 16]


def test_a_bad_batch_that_is_an_error_ends_with_its_reason():
    _, outcomes = train_two({"bad": 2}, {})
    assert "step 2: the gradient of" in str(outcomes[0])
    assert "is not finite" in str(outcomes[1])
