"""The average of the iterates: against the recursion in numpy, as a state, and as what the model is for a while."""

import copy
import pickle

import numpy as np
import pytest
import torch
from edgenewton.common.options import OptionError
from torch import nn
from torch.nn.functional import cross_entropy

from edge_client import IterateAverage, LocalCurvature, LocalSteps, NewtonOptimizer, TrustRegion

_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(16, 6, generator=_GENERATOR)
Y = torch.randint(0, 3, (16,), generator=_GENERATOR)


def small_model(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def step(model, optimizer, x=X, y=Y) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x.to(next(model.parameters()).dtype)), y).backward()
    optimizer.step()


def parameters_of(model):
    """Return what is averaged, in float64."""
    return {name: parameter.detach().double().numpy().copy() for name, parameter in model.named_parameters()}


def averaged(model, optimizer):
    with optimizer.averaged():
        return copy.deepcopy(model.state_dict())


def recursion(iterates, decay=0.97):
    """Return the average as the option's text defines it."""
    average = iterates[0]
    for n, iterate in enumerate(iterates[1:], start=1):
        weight = max(1 - decay, 9 / (10 + n))
        average = {name: (1 - weight) * value + weight * iterate[name] for name, value in average.items()}
    return average


def assert_close(state, expected, **tolerance):
    for name, value in expected.items():
        np.testing.assert_allclose(state[name].double().numpy(), value, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


@pytest.mark.parametrize("decay", [0.5, 0.97])
def test_it_is_the_recursion(decay):
    model = small_model()
    optimizer = NewtonOptimizer(model, averaging=IterateAverage(decay))
    iterates = []
    for _ in range(30):
        step(model, optimizer)
        iterates.append(parameters_of(model))
    assert_close(averaged(model, optimizer), recursion(iterates, decay))


def test_many_iterates_at_the_end_of_a_long_run_are_exponentially_forgotten():
    model = small_model()
    optimizer = NewtonOptimizer(model, averaging=IterateAverage(0.9), lr=0.0)
    step(model, optimizer)
    average = optimizer._average
    assert average.weight() == pytest.approx(9 / 11)
    average.count = 79
    assert average.weight() == pytest.approx(9 / 89)
    average.count = 80
    assert average.weight() == pytest.approx(0.1)
    assert average.weight(10) == pytest.approx(1 - 0.9**10)


def test_the_model_has_it_for_a_while_and_then_its_own_values_by_the_same_bits():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    for _ in range(5):
        step(model, optimizer)
    before = copy.deepcopy(model.state_dict())

    def look():
        with optimizer.averaged():
            with optimizer.averaged():
                inner.update(copy.deepcopy(model.state_dict()))
            return model(X[:, :5])  # of a wrong shape

    inner = {}
    with pytest.raises(RuntimeError, match="shape"):
        look()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in before:
        assert torch.equal(inner[name], before[name]) == (name not in dict(model.named_parameters())), name


def test_without_an_iterate_or_without_averaging_the_model_stays_as_it_is():
    for averaging, steps in ((None, 3), (IterateAverage(0), 3), (IterateAverage(), 0)):
        model = small_model()
        optimizer = NewtonOptimizer(model, averaging=averaging)
        for _ in range(steps):
            step(model, optimizer)
        state = averaged(model, optimizer)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_it_does_not_change_the_training():
    models = []
    for averaging in (None, IterateAverage()):
        model = small_model()
        optimizer = NewtonOptimizer(model, averaging=averaging)
        for _ in range(4):
            step(model, optimizer)
            averaged(model, optimizer)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_training_inside_is_refused_by_name():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    step(model, optimizer)
    loss = cross_entropy(model(X), Y)
    state = optimizer.state_dict()
    acts = [
        optimizer.zero_grad,
        optimizer.step,
        optimizer.synchronise,
        lambda: optimizer.load_state_dict(state),
        loss.backward,
    ]
    for act in acts:
        with optimizer.averaged(), pytest.raises(RuntimeError, match=r"inside `with optimizer.averaged\(\):`"):
            act()
    step(model, optimizer)


def test_a_batch_around_it_is_not_disturbed():
    results = []
    for looks in (False, True):
        model = small_model()
        optimizer = NewtonOptimizer(model)
        for _ in range(3):
            optimizer.zero_grad()
            loss = cross_entropy(model(X), Y)
            if looks:
                with optimizer.averaged():
                    model.eval()(X[:3])
                model.train()
            loss.backward()
            if looks:
                with optimizer.averaged(), torch.no_grad():
                    model.eval()(X[:5])
                model.train()
            optimizer.step()
        results.append(model.state_dict())
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_it_goes_on_from_a_state_by_the_same_bits():
    def resumed(at):
        model = small_model()
        optimizer = NewtonOptimizer(model)
        for number in range(12):
            if number == at:
                saved = pickle.dumps((model.state_dict(), optimizer.state_dict()))
                of_model, of_optimizer = pickle.loads(saved)
                model = small_model()
                model.load_state_dict(of_model)
                optimizer = NewtonOptimizer(model)
                optimizer.load_state_dict(of_optimizer)
            step(model, optimizer)
        return averaged(model, optimizer)

    whole, parts = resumed(None), resumed(5)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_state_of_before_it_was_there_lets_it_begin_at_the_iterate():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    for _ in range(3):
        step(model, optimizer)
    state = optimizer.state_dict()
    del state["average"]
    optimizer.load_state_dict(state)
    iterates = []
    for _ in range(4):
        step(model, optimizer)
        iterates.append(parameters_of(model))
    assert_close(averaged(model, optimizer), recursion(iterates))


def test_a_state_does_not_change_with_the_optimizer_that_loaded_it():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    step(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(state["average"])
    optimizer.load_state_dict(state)
    step(model, optimizer)
    assert all(torch.equal(tensor, state["average"]["parameters"][name]) for name, tensor in kept["parameters"].items())


def test_a_state_of_another_model_is_refused_by_name():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    step(model, optimizer)
    for name, tensor, says in (
        ("3.weight", torch.zeros(2, 8), r"'3.weight' of shape \(2, 8\), and the model has one of \(3, 8\)"),
        ("9.weight", torch.zeros(2), r"'9.weight' of shape \(2,\), and the model has no such parameter"),
    ):
        state = copy.deepcopy(optimizer.state_dict())
        state["average"]["parameters"][name] = tensor
        with pytest.raises(ValueError, match=says):
            NewtonOptimizer(small_model()).load_state_dict(state)


def test_a_batch_that_is_skipped_is_no_iterate():
    model = small_model()
    optimizer = NewtonOptimizer(model, nonfinite="skip", sync=LocalSteps(every=1))
    for bad in (False, True, False):
        step(model, optimizer, X * float("nan") if bad else X)
    assert optimizer.skipped == 1
    assert optimizer._average.count == 2


def test_what_is_unfrozen_or_added_joins_at_its_value():
    model = small_model()
    model[3].requires_grad_(False)
    optimizer = NewtonOptimizer([{"params": list(model[0].parameters())}], model=model)
    for _ in range(6):
        step(model, optimizer)
    assert set(optimizer.state_dict()["average"]["parameters"]) == {"0.weight", "0.bias"}
    model[3].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[3].parameters())})
    iterates = []
    for _ in range(2):
        step(model, optimizer)
        iterates.append(model[3].weight.detach().clone())
    weight = 9 / (10 + 7)
    expected = (1 - weight) * iterates[0] + weight * iterates[1]
    torch.testing.assert_close(averaged(model, optimizer)["3.weight"], expected)


def test_what_is_frozen_on_the_way_draws_its_average_to_it():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    step(model, optimizer)
    model[0].requires_grad_(False)
    for _ in range(30):
        step(model, optimizer)
    torch.testing.assert_close(averaged(model, optimizer)["0.weight"], model[0].weight.detach())


def test_it_follows_a_model_that_moves():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    iterates = []
    for number in range(6):
        if number == 3:
            model.double()
        step(model, optimizer)
        iterates.append(parameters_of(model))
    state = averaged(model, optimizer)
    assert state["0.weight"].dtype == torch.float64
    assert_close(state, recursion(iterates))


def test_an_average_of_bfloat16_is_finer_than_its_iterates():
    model = nn.Linear(6, 3).bfloat16()
    optimizer = NewtonOptimizer(model, averaging=IterateAverage(0.999), lr=0.0)
    step(model, optimizer)
    optimizer._average.count = 10**6
    with torch.no_grad():
        model.bias.fill_(1.0)
        optimizer._average._averages["bias"].fill_(0.0)
    for _ in range(3):
        optimizer._average.take()
    assert optimizer.state_dict()["average"]["parameters"]["bias"].dtype == torch.float32
    assert averaged(model, optimizer)["bias"].dtype == torch.bfloat16
    assert float(averaged(model, optimizer)["bias"][0]) == pytest.approx(1 - 0.999**3, rel=1e-2)


def test_going_up_is_averaged_as_going_down():
    model = small_model()
    optimizer = NewtonOptimizer(model, maximize=True, trust=TrustRegion(update_clip=0.01))
    iterates = []
    for _ in range(4):
        step(model, optimizer)
        iterates.append(parameters_of(model))
    assert_close(averaged(model, optimizer), recursion(iterates))


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (LocalSteps(every=4), [0, 0, 0, 4, 4, 4, 4, 8, 8]),
        (LocalCurvature(sync_every=4), [0, 0, 0, 0, 4, 4, 4, 4, 8]),
    ],
)
def test_between_exchanges_nothing_is_averaged(plan, expected):
    model = small_model()
    optimizer = NewtonOptimizer(model, sync=plan)
    counts = []
    for _ in range(9):
        step(model, optimizer)
        counts.append(optimizer._average.count)
    assert counts == (
        [0, 0, 0, 4, 4, 4, 4, 8, 8] if isinstance(optimizer._sync, LocalSteps) else [0] * 4 + [4] * 4 + [8]
    )


def test_the_model_of_a_round_is_averaged_with_the_weight_of_its_batches():
    model = small_model()
    optimizer = NewtonOptimizer(model, sync=LocalSteps(every=3))
    anchors = []
    for number in range(12):
        step(model, optimizer)
        if number % 3 == 2:
            anchors.append(parameters_of(model))
    average = anchors[0]
    for number, anchor in enumerate(anchors[1:], start=1):
        kept = np.prod([1 - max(0.03, 9 / (10 + n)) for n in range(3 * number, 3 * number + 3)])
        average = {name: kept * value + (1 - kept) * anchor[name] for name, value in average.items()}
    assert_close(averaged(model, optimizer), average)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(OptionError, match="averaging is"):
        IterateAverage(decay)
