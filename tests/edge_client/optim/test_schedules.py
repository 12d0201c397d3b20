import copy
import math
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from edgenewton.common.options import OptionError
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, LocalSteps, NewtonOptimizer, Schedule, TrustRegion
from edge_client.exchange import ExchangeError

STEPS = 12

MAKERS = {
    "lambda": lambda optimizer: LambdaLR(optimizer, Schedule("warmup-cosine", steps=STEPS, warmup_steps=3)),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=STEPS),
    "sequence": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.25, total_iters=3), CosineAnnealingLR(optimizer, STEPS)], [3]
    ),
}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def take(trained, optimizer, seed=None):
    seed = optimizer.current_step if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
    optimizer.zero_grad()
    cross_entropy(trained(x), y).backward()
    optimizer.step()


def weights(trained):
    return torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])


# ---------------------------------------------------------------- the factors


def test_the_schedules_are_what_their_names_say():
    assert {Schedule()(step) for step in range(100)} == {1.0}
    cosine = Schedule("cosine", steps=100, floor=0.1)
    assert cosine(0) == 1
    assert cosine(50) == pytest.approx(0.55)
    assert cosine(100) == cosine(1_000) == pytest.approx(0.1)
    rise = Schedule("linear-warmup", warmup_steps=4)
    assert [rise(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert Schedule("linear-warmup", steps=80)(0) == 0.25  # a twentieth of the run
    both = Schedule("warmup-cosine", steps=104, warmup_steps=4)
    assert [both(step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert both(54) == pytest.approx(0.5)


def test_a_cosine_is_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs, ours = CosineAnnealingLR(optimizer, 50), Schedule("cosine", steps=50)
    for step in range(50):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * ours(step), abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin"}, "schedule is 'cosin'; known are constant, cosine"),
        ({"name": "cosine", "warmup_steps": 5}, "'warmup-cosine' has"),
        ({"name": "linear-warmup", "floor": 0.1}, "has no end"),
        ({"name": "cosine", "floor": 2.0}, "lr_floor is 2.0"),
        ({"name": "warmup-cosine", "steps": 10, "warmup_steps": 10}, "run's 10 steps"),
    ],
)
def test_what_does_not_suit_is_named(options, message):
    with pytest.raises(OptionError, match=message):
        Schedule(**options)


def test_a_schedule_that_ends_needs_the_length_of_the_run():
    with pytest.raises(OptionError, match="needs the number of the run's steps"):
        NewtonOptimizer(model(), schedule=Schedule("cosine"))


def test_a_factor_that_is_none_is_an_error():
    with pytest.raises(OptionError, match="schedule's factor in step 0 is -1"):
        NewtonOptimizer(model(), schedule=lambda step: -1)


# ---------------------------------------------------------------- the step


@pytest.mark.parametrize(
    ("bound", "is_active"),
    [
        ({"kl_clip": 1e-4, "update_clip": math.inf}, True),
        ({"kl_clip": math.inf, "update_clip": 1e-3}, True),
        ({"kl_clip": math.inf, "update_clip": math.inf}, False),
    ],
)
@pytest.mark.parametrize("way", ["schedule", "scheduler"])
def test_the_step_shrinks_by_the_factor_also_where_a_bound_is_active(bound, is_active, way):
    def moved(factor, lr=0.5):
        trained = model()
        before = weights(trained).double()
        schedule = (lambda step: factor) if way == "schedule" else None
        optimizer = NewtonOptimizer(trained, lr=lr, momentum=0.0, trust=TrustRegion(**bound), schedule=schedule)
        if way == "scheduler":
            LambdaLR(optimizer, lambda step: factor)
        take(trained, optimizer, seed=3)
        return weights(trained).double() - before

    full = moved(1.0)
    assert full.norm() > 0
    torch.testing.assert_close(moved(0.25), 0.25 * full, rtol=1e-3, atol=1e-7)
    # The bound holds for the full step: without a schedule a smaller step size changes nothing of it.
    shrinks = moved(1.0, lr=0.25).norm() / full.norm()
    assert shrinks == pytest.approx(1.0 if is_active else 0.5, rel=0.05)


def test_a_constant_schedule_changes_no_bit():
    def trained_with(**options):
        trained = model()
        optimizer = NewtonOptimizer(trained, weight_decay=0.01, **options)
        for _ in range(5):
            take(trained, optimizer)
        return weights(trained)

    assert torch.equal(trained_with(), trained_with(schedule=Schedule()))
    assert not torch.equal(trained_with(), trained_with(schedule=Schedule("cosine", steps=5)))


# ---------------------------------------------------------------- torch's own


@pytest.mark.parametrize("name", MAKERS)
def test_torchs_schedulers_are_followed_as_a_plain_loop_steps_them(name, recwarn):
    def values(follows):
        trained = model()
        optimizer = NewtonOptimizer(trained, lr=0.1)
        scheduler = MAKERS[name](optimizer)
        if follows:
            optimizer.follow(scheduler)
        seen = []
        for _ in range(STEPS - 1):
            take(trained, optimizer)
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            if not follows:
                scheduler.step()
        return seen, weights(trained)

    plain, plain_weights = values(follows=False)
    followed, followed_weights = values(follows=True)
    assert followed == plain
    assert torch.equal(followed_weights, plain_weights)
    assert len({momentum for _, momentum in plain}) == (STEPS - 1 if name == "one cycle" else 1)
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


@pytest.mark.parametrize("name", MAKERS)
def test_a_restarted_device_has_the_scheduler_where_it_was(name):
    trained = model()
    optimizer = NewtonOptimizer(trained, lr=0.1)
    optimizer.follow(MAKERS[name](optimizer))
    for _ in range(5):
        take(trained, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    again = model()
    again.load_state_dict(trained.state_dict())
    other = NewtonOptimizer(again, lr=0.1)
    other.follow(MAKERS[name](other))
    other.load_state_dict(state)
    for _ in range(3):
        take(trained, optimizer)
        take(again, other)
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert torch.equal(weights(trained), weights(again))


def test_a_scheduler_that_cannot_be_followed_is_named():
    optimizer = NewtonOptimizer(model(), lr=0.1)
    with pytest.raises(ValueError, match="ReduceLROnPlateau follows a loss"):
        optimizer.follow(ReduceLROnPlateau(optimizer))
    with pytest.raises(ValueError, match="another optimizer's"):
        optimizer.follow(StepLR(NewtonOptimizer(model()), 2))


# ---------------------------------------------------------------- with other devices


class Device:
    def __init__(self, address, name, plan, prepare):
        self.model = model()
        self.exchange = GradientExchange.connect(address, session="s", device=name, reconnect_deadline_s=20)
        self.optimizer = prepare(self.model, plan(self.exchange))

    def train(self, until):
        try:
            while self.optimizer.current_step < until:
                take(self.model, self.optimizer)
            self.optimizer.synchronise()
            self.exchange.close()
        except BaseException as error:
            self.exchange.close(failure=str(error))
            raise


def with_schedule(trained, plan):
    return NewtonOptimizer(trained, lr=0.1, sync=plan, schedule=Schedule("cosine", steps=STEPS))


def with_followed(trained, plan):
    optimizer = NewtonOptimizer(trained, lr=0.1, sync=plan)
    optimizer.follow(MAKERS["one cycle"](optimizer))
    return optimizer


@pytest.mark.parametrize("prepare", [with_schedule, with_followed])
@pytest.mark.parametrize("plan", [EveryBatch, lambda exchange: LocalSteps(exchange, 2)])
def test_a_device_that_comes_late_takes_the_others_steps(prepare, plan):
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(3) as pool:
        coordinator.create_session("s", SessionSettings(devices=2, max_devices=3, digest_every=1))
        first = [Device(coordinator.address, name, plan, prepare) for name in "ab"]
        list(pool.map(lambda device: device.optimizer.join(), first))
        for done in [pool.submit(lambda d=device: [take(d.model, d.optimizer) for _ in range(4)]) for device in first]:
            done.result(30)
        late = Device(coordinator.address, "c", plan, prepare)
        joining = pool.submit(late.optimizer.join)
        while not joining.done():  # a state is handed in between two steps: nobody may have gone before
            list(pool.map(lambda device: take(device.model, device.optimizer), first))
            wait([joining], 3)
        for done in [pool.submit(device.train, STEPS) for device in (*first, late)]:
            done.result(30)
        assert torch.equal(weights(late.model), weights(first[0].model))
        assert torch.equal(weights(first[1].model), weights(first[0].model))


def test_another_length_of_the_run_is_said_when_a_device_joins():
    def shorter(trained, plan):
        return NewtonOptimizer(trained, lr=0.1, sync=plan, schedule=Schedule("cosine", steps=6))

    with embedded_coordinator() as coordinator:
        coordinator.create_session("s", SessionSettings(devices=2))
        first = Device(coordinator.address, "a", EveryBatch, with_schedule)
        first.optimizer.join()
        second = Device(coordinator.address, "b", EveryBatch, shorter)
        with pytest.raises(ExchangeError, match="schedule_steps"):
            second.optimizer.join()
        first.exchange.close()
        second.exchange.close()
