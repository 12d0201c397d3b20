"""A second optimizer for one model, as a cell of a notebook makes it that runs again, and compiled models."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def take(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
    return loss.item()


def hooks_on(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_last_of_two_optimizers_trains_as_if_it_were_the_only_one():
    model, alone = made(), made()
    first = NewtonOptimizer(model)
    hooks = hooks_on(model)
    second = NewtonOptimizer(model)
    assert hooks_on(model) == hooks
    assert take(model, second, 5) == take(alone, NewtonOptimizer(alone), 5)
    with pytest.raises(RuntimeError, match="another optimizer was made for this model since"):
        first.step()


def test_a_model_within_another_is_taken_over_too():
    inner = made()
    first = NewtonOptimizer(nn.ModuleList([inner]))
    NewtonOptimizer(nn.ModuleList([inner]))
    with pytest.raises(RuntimeError, match="another optimizer was made"):
        first.step()


def test_optimizers_of_different_parameters_of_one_model_stay():
    model = made()
    first = NewtonOptimizer([{"params": list(model[0].parameters())}], model=model)
    second = NewtonOptimizer([{"params": list(model[3].parameters())}], model=model)
    for optimizer in (first, second):
        take(model, optimizer)


def test_an_optimizer_that_could_not_be_made_leaves_the_one_before():
    model = made()
    optimizer = NewtonOptimizer(model)
    with pytest.raises(ValueError, match="lr"):
        NewtonOptimizer(model, lr=-1.0)
    take(model, optimizer)


def test_nobody_keeps_an_optimizer_alive():
    model = made()
    optimizer = weakref.ref(NewtonOptimizer(model))
    NewtonOptimizer(model)
    gc.collect()
    assert optimizer() is None


def test_in_a_session_the_one_before_leaves_and_the_last_takes_its_place():
    def begin(model, device):
        exchange = GradientExchange.connect(coordinator.address, session="s", device=device, reconnect_deadline_s=20)
        return exchange, NewtonOptimizer(model, sync=EveryBatch(exchange))

    with embedded_coordinator() as coordinator, ThreadPoolExecutor(2) as pool:
        coordinator.create_session("s", SessionSettings(devices=2))
        models = [made(), made()]
        exchanges, optimizers = zip(*map(begin, models, "ab"), strict=True)
        list(pool.map(take, models, optimizers))
        again, second = begin(models[0], "a")
        other = pool.submit(take, models[1], optimizers[1])  # it hands its state over
        take(models[0], second)
        other.result(60)
        assert second.current_step == optimizers[1].current_step == 2
        assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
        for exchange in (again, exchanges[1]):
            exchange.close()


def test_a_plan_that_has_its_place_is_no_other_optimizers():
    with embedded_coordinator() as coordinator:
        coordinator.create_session("s", SessionSettings(devices=1))
        exchange = GradientExchange.connect(coordinator.address, session="s", device="a")
        model = made()
        plan = EveryBatch(exchange)
        take(model, NewtonOptimizer(model, sync=plan))
        with pytest.raises(ValueError, match="close its exchange, and make a plan with an exchange that you connect"):
            NewtonOptimizer(model, sync=plan)
        exchange.close()


def test_a_compiled_model_is_not_compiled_anew_as_the_steps_go_on():
    torch.compiler.reset()
    model, alone = made(), made()
    optimizer = NewtonOptimizer(model)
    compiled = torch.compile(model, backend="eager")
    take(compiled, optimizer, 2)
    graphs = counters["stats"]["unique_graphs"]
    loss = take(compiled, optimizer, 25)  # the steps in which curvature is captured, and others
    assert counters["stats"]["unique_graphs"] == graphs
    assert loss == take(alone, NewtonOptimizer(alone), 27)
    torch.compiler.reset()
