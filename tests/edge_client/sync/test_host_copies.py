"""Copies to the host that take their time, as those of CUDA do: the tests say when each is whole."""

import pytest
import torch

from edge_client import EveryBatch, NewtonOptimizer
from edge_client.exchange import InProcessExchange, NonFiniteGradientError
from edge_client.sync.host_copies import HostCopies


class Arrival:
    """Arrives once it is waited for, or when a test says so."""

    def __init__(self):
        self.is_whole = False

    def query(self):
        return self.is_whole

    def synchronize(self):
        self.is_whole = True


class SlowCopies(HostCopies):
    def __init__(self):
        super().__init__(self._begin_copy)
        self.arrivals = []

    def _begin_copy(self, value):
        self.arrivals.append(Arrival())
        return value.clone(), self.arrivals[-1]


def test_copies_are_given_in_the_order_in_which_they_were_begun():
    copies = SlowCopies()
    for number in range(3):
        copies.begin(("gradient", str(number)), torch.full((2,), float(number)))
    assert not list(copies.arrived())
    copies.arrivals[1].is_whole = True
    assert not list(copies.arrived())  # the first is not whole yet
    copies.arrivals[0].is_whole = True
    assert [key[1] for key, _ in copies.arrived()] == ["0", "1"]
    assert ("gradient", "2") in copies
    ((key, value),) = copies.arrived(waits=True)
    assert key == ("gradient", "2")
    assert value.tolist() == [2, 2]
    assert ("gradient", "2") not in copies


class SlowExchange(InProcessExchange):
    """Lets its plan believe in other devices."""

    is_alone = False


def slow(**options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    plan = EveryBatch(SlowExchange())
    plan._outbox.copies = SlowCopies()
    return model, plan, NewtonOptimizer(model, sync=plan, **options)


def backward(model, optimizer, *, bad=False):
    optimizer.zero_grad()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(optimizer.current_step))
    loss = model(x * float("nan") if bad else x).square().mean()
    loss.backward()
    optimizer.report(loss.item())


def test_a_step_contributes_what_was_still_on_its_way():
    weights = []
    for is_slow in (True, False):
        model, plan, optimizer = slow()
        if not is_slow:
            plan._outbox.copies = HostCopies()
        for _ in range(4):
            backward(model, optimizer)
            assert bool(plan._outbox.copies._under_way) == is_slow
            optimizer.step()
        weights.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_a_gradient_that_is_not_finite_is_found_when_it_arrives():
    model, plan, optimizer = slow()
    backward(model, optimizer)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    backward(model, optimizer, bad=True)  # nothing is known of it yet
    with pytest.raises(NonFiniteGradientError):
        optimizer.step()
    assert not plan._outbox.copies._under_way
    optimizer.zero_grad()  # the rest of the step goes without this device's batch
    assert optimizer.current_step == 2
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    backward(model, optimizer)
    optimizer.step()
    assert optimizer.current_step == 3
