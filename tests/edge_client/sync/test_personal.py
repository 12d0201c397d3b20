"""Personal layers: each device's own, in sessions of a real coordinator, against the same computed by hand."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from edgenewton.common.options import OptionError
from local_devices import SCOPES, data
from torch import nn
from torch.nn.functional import cross_entropy

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.curvature.layers.linear import LinearLayer
from edge_client.curvature.preconditioner import Direction
from edge_client.exchange import ExchangeError, NonFiniteGradientError
from edge_client.optim.options import Curvature, Refresh, TrustRegion
from edge_client.optim.trust_region import bounded
from edge_client.sync import LocalCurvature, LocalSteps, Outer
from edge_client.sync.model_tensors import copies
from edge_client.sync.replica import load_state


class Net(nn.Module):
    """A trunk with a norm, and a head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.trunk(x)))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x)))


def every_batch(exchange, number, **options):
    return EveryBatch(exchange, **options)


def local_curvature(exchange, number, **options):
    return LocalCurvature(exchange, 2, **options)


def local_steps(scope="own", **chosen):
    def plan(exchange, number, **options):
        return LocalSteps(exchange, 2, scope=SCOPES[scope](number), **chosen, **options)

    return plan


PLANS = {
    "every batch": every_batch,
    "every batch, whitened": lambda exchange, number, **options: EveryBatch(exchange, whiten=True, **options),
    "every batch, in the step": lambda exchange, number, **options: EveryBatch(exchange, overlap=False, **options),
    "local curvature": local_curvature,
    "local steps": local_steps(),
    "local steps, momentum": local_steps(outer=Outer(0.7, 0.5)),
    "local steps, shared": local_steps("shared"),
    "local steps, probe": local_steps("probe"),
    "local steps, blend": local_steps("blend of a measured probe"),
    "local steps, overlap": local_steps("shared", overlap=True),
}
HEAD = ("head.*",)
MOMENTS = ("norm.*_*",)
"""Running means and variances alone (as in SiloBN, Andreux et al. 2020)."""


class Device:
    def __init__(self, address, number, make=every_batch, model=None, personal=HEAD, state=None, **options):
        self.number, self.model = number, Net() if model is None else model
        self.exchange = GradientExchange.connect(address, session="s", device=f"d{number}", reconnect_deadline_s=20)
        self.plan = make(self.exchange, number, personal=personal)
        self.optimizer = NewtonOptimizer(self.model, sync=self.plan, **options)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])

    def take(self, bad=False, **step):
        x, y = data(self.number, self.optimizer.current_step)
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x * float("nan") if bad else x), y)
        loss.backward()
        self.optimizer.report(loss.item())
        self.optimizer.step(**step)
        return self

    def train(self, until):
        while self.optimizer.current_step < until:
            self.take()
        return self

    @property
    def common(self):
        return {n: t.clone() for n, t in self.model.state_dict().items() if n not in self.plan.personal}

    @property
    def own(self):
        return {n: t.clone() for n, t in self.model.state_dict().items() if n in self.plan.personal}

    def state(self):
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})


@contextmanager
def session(devices=2, **settings):
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(4) as pool:
        coordinator.create_session("s", SessionSettings(**({"devices": devices, "codec": "fp32"} | settings)))
        made = []

        def make(number, *args, **options):
            made.append(Device(coordinator.address, number, *args, **options))
            return made[-1]

        yield make, lambda act, *those: list(pool.map(act, those or made))
        for device in made:
            device.exchange.close("over")


def tensors_within(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_within(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_within(inner)


def keys_within(value):
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from keys_within(inner)


def of_floats(weights):
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- what a step is


def by_hand(models, batches, damping, kl_clip, lr):
    """Return each device's weights after one step: K-FAC by its definition, dense, from autograd alone."""
    seen = []
    for model, (x, y) in zip(models, batches, strict=True):
        n = len(x)
        outputs = {"trunk": model.trunk(x)}
        outputs["head"] = model.head(torch.tanh(outputs["trunk"]))
        loss = cross_entropy(outputs["head"], y)
        inputs = {"trunk": x, "head": torch.tanh(outputs["trunk"]).detach()}
        found = {}
        for name, layer in (("trunk", model.trunk), ("head", model.head)):
            weight, bias, g = torch.autograd.grad(loss, (layer.weight, layer.bias, outputs[name]), retain_graph=True)
            a = torch.cat([inputs[name], torch.ones(n, 1, dtype=x.dtype)], 1)
            own = g * n  # of each sample's own loss
            found[name] = (torch.cat([weight, bias[:, None]], 1), a.T @ a / n, own.T @ own / n)
        seen.append((n, found))
    total = sum(n for n, _ in seen)
    mean = tuple(sum(n * found["trunk"][i] for n, found in seen) / total for i in range(3))
    unit = float(mean[1].trace() * mean[2].trace()) / mean[0].numel()
    after = []
    for model, (_, found) in zip(models, seen, strict=True):
        stepped = {}
        for name, (D, A, G) in (("trunk", mean), ("head", found["head"])):
            curvature = torch.kron(G, A) + damping * unit * torch.eye(D.numel(), dtype=D.dtype)
            P = torch.linalg.solve(curvature, D.reshape(-1)).reshape(D.shape)
            scale = min(1.0, math.sqrt(kl_clip / float(lr**2 * (P * D).sum())))
            layer = getattr(model, name)
            stepped[f"{name}.weight"] = layer.weight.detach() - lr * scale * P[:, :-1]
            stepped[f"{name}.bias"] = layer.bias.detach() - lr * scale * P[:, -1]
            assert scale < 1
        after.append((mean[0], found["head"][0], stepped))
    return after


def test_a_step_is_the_one_that_is_computed_by_hand():
    models = [Plain().double(), Plain().double()]
    with torch.no_grad():
        models[1].head.weight.mul_(-2)
    batches = [(x.double(), y) for x, y in (data(number, 0) for number in range(2))]
    expected = by_hand([copy.deepcopy(model) for model in models], batches, 0.05, 1e-4, 0.1)
    options = {
        "lr": 0.1,
        "curvature": Curvature("kfac", inversion="eigen"),
        "trust": TrustRegion(damping=0.05, kl_clip=1e-4, update_clip=math.inf),
    }
    with session() as (make, together):
        for number, model in enumerate(models):
            make(number, model=model, **options)

        def step(device):
            x, y = batches[device.number]
            device.optimizer.zero_grad()
            cross_entropy(device.model(x), y).backward()
            device.optimizer.step()

        together(step)
    for model, (of_trunk, of_head, weights) in zip(models, expected, strict=True):
        tolerance = {"rtol": 1e-4, "atol": 1e-7}  # of float32, in which means travel
        torch.testing.assert_close(model.trunk.weight.grad, of_trunk[:, :-1], **tolerance)
        torch.testing.assert_close(model.head.weight.grad, of_head[:, :-1], rtol=1e-9, atol=1e-12)
        for name, tensor in weights.items():
            torch.testing.assert_close(model.state_dict()[name], tensor, **tolerance)
    assert torch.equal(models[0].trunk.weight, models[1].trunk.weight)
    assert not torch.allclose(models[0].head.weight, -models[1].head.weight / 2)


def test_rounds_of_local_steps_average_the_common_moves_alone():
    with session() as (make, together):
        devices = [make(number, local_steps()) for number in range(2)]
        together(lambda device: device.train(4))
    alone = [NewtonOptimizer(Net(), sync=EveryBatch(personal=HEAD)) for _ in devices]
    weights = [len(data(number, 0)[0]) for number in range(2)]
    anchor = {n: t.clone() for n, t in Net().state_dict().items() if not n.startswith("head")}
    for _ in range(2):
        after = []
        for number, optimizer in enumerate(alone):
            optimizer._model.load_state_dict({**optimizer._model.state_dict(), **anchor})
            for _ in range(2):
                x, y = data(number, optimizer.current_step)
                optimizer.zero_grad()
                cross_entropy(optimizer._model(x), y).backward()
                optimizer.step()
            after.append(copies(optimizer._model.state_dict()))
        for name in of_floats(anchor):
            anchor[name] = sum(n * w[name] for n, w in zip(weights, after, strict=True)) / sum(weights)
    for device, optimizer in zip(devices, alone, strict=True):
        for name, tensor in of_floats(anchor).items():
            torch.testing.assert_close(device.common[name], tensor, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(device.model.head.weight, optimizer._model.head.weight, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- what leaves


@pytest.mark.parametrize(
    ("plan", "personal"),
    [
        *((plan, HEAD) for plan in PLANS),
        *((plan, norms) for plan in ("every batch", "local steps, blend") for norms in (("norm",), MOMENTS)),
    ],
)
def test_common_layers_stay_identical_and_nothing_personal_leaves(plan, personal):
    with session() as (make, together):
        devices = [make(number, PLANS[plan], personal=personal, trust=TrustRegion(kl_clip=1e-3)) for number in range(2)]
        together(lambda device: device.optimizer.join())
        told = [{(s.kind, part.name) for s in device.plan.specs() for part in (s, *s.parts)} for device in devices]
        together(lambda device: device.train(6).optimizer.synchronise())
        common, own = ([getattr(device, part) for device in devices] for part in ("common", "own"))
        assert equal(*map(of_floats, common))
        assert all(not torch.equal(one, two) for one, two in zip(*(of_floats(o).values() for o in own), strict=True))
        owners = {name.rpartition(".")[0] for name in own[0]} if personal != MOMENTS else set()
        names = devices[0].plan.personal | owners
        assert not [name for name in told[0] for mine in names if name[1] == mine or name[1].startswith(f"{mine}:")]
        given = load_state(devices[0].plan.replica.dump())
        private = [*of_floats(own[0]).values()]
        if owners:
            curvature = devices[0].optimizer.state_dict()["curvature"]
            private += tensors_within({owner: curvature[owner] for owner in owners})
            moments = devices[0].optimizer.state
            private += [moments[p]["momentum_buffer"] for n, p in devices[0].model.named_parameters() if n in own[0]]
        assert private
        of_size = [t for t in tensors_within(given) if t.numel() > 1]
        assert not [t for t in of_size for p in private if p.numel() > 1 and t.shape == p.shape and torch.equal(t, p)]
        assert not set(keys_within(given)) & names


def test_moves_in_few_bits_are_scaled_alike_on_all_devices():
    """Not by a synthetic batch's curvature, which is another behind each head."""
    with session(codec="sparse4") as (make, together):
        devices = [make(number, PLANS["local steps, probe"]) for number in range(2)]
        with torch.no_grad():
            devices[1].model.head.weight.mul_(5)
        together(lambda device: device.train(6))
        assert equal(*(of_floats(device.common) for device in devices))


def test_devices_that_chose_other_layers_are_refused_by_name():
    with session(join_deadline_s=5) as (make, _):
        first, other = make(0), make(1, personal=("head.*", "norm*"))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(first.optimizer.join).result()
            with pytest.raises(ExchangeError, match="'personal' is head.* in the session but head.*, norm.* on this"):
                other.optimizer.join()


@pytest.mark.parametrize("make", [EveryBatch, LocalSteps, LocalCurvature])
@pytest.mark.parametrize(
    ("personal", "text"),
    [
        (["haed.*"], r"personal is 'haed.\*'; no parameter, buffer or module .* nearest are head"),
        (["head.*", "nrom"], "personal is 'nrom'.*nearest are norm"),
        (["head.weight"], r"weight and bias of layer 'head' have one curvature: name both, 'head.\*'"),
        (["*"], "no trained parameter for the devices to share"),
        ("trunk.*, norm,head", "no trained parameter for the devices to share"),
    ],
)
def test_patterns_that_cannot_be_meant_are_named(make, personal, text):
    with pytest.raises(OptionError, match=text):
        NewtonOptimizer(Net(), sync=make(personal=personal))


@pytest.mark.parametrize("personal", ["head", "head.*", "h*d", ["head.weight", "head.bias"], "*.head*, head*"])
def test_a_pattern_may_name_a_module_or_its_tensors(personal):
    plan = EveryBatch(personal=personal)
    if "," in personal:
        with pytest.raises(OptionError, match=r"'\*.head\*'"):
            NewtonOptimizer(Net(), sync=plan)
        return
    NewtonOptimizer(Net(), sync=plan)
    assert plan.personal == {"head.weight", "head.bias"}


# ---------------------------------------------------------------- devices that come, go and fail


@pytest.mark.parametrize("plan", ["every batch", "local steps, shared", "local steps, blend"])
def test_a_late_device_takes_the_common_part_and_keeps_its_own(plan):
    with session(max_devices=3) as (make, together):
        early = [make(number, PLANS[plan]) for number in range(2)]
        together(lambda device: device.train(4))
        late = make(2, PLANS[plan], model=Net(seed=9))
        before = late.own

        until = 4
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(late.optimizer.join)
            while not joining.done():  # a state is handed in between two steps: nobody may have gone before
                until += 2
                together(lambda device, until=until: device.train(until), *early)
            joining.result()
        assert equal(late.own, before)
        together(lambda device: device.train(until + 4))
        assert equal(of_floats(early[0].common), of_floats(late.common)) or plan == "every batch"
        assert torch.equal(early[0].model.trunk[0].weight, late.model.trunk[0].weight)
        assert not torch.equal(early[0].model.head.weight, late.model.head.weight)


def test_a_device_that_heals_keeps_its_own_layers():
    with session(devices=3, digest_every=1) as (make, together):
        devices = [make(number) for number in range(3)]
        together(lambda device: device.train(2))
        with torch.no_grad():
            devices[2].model.trunk[0].weight.add_(0.1)
        momentum = {}

        def go_on(device):
            while device.optimizer.current_step < 6:
                before = device.own, device.state()["optimizer"]["state"]
                device.take()
                if device.optimizer.last_result.is_healed:
                    momentum[device.number] = (before[0], device.own, before[1], device.state()["optimizer"]["state"])
            return device

        together(go_on)
        assert list(momentum) == [2]
        before, after, old, new = momentum[2]
        assert equal(before, after)
        head = [i for i, p in enumerate(devices[2].model.parameters()) if p.shape[0] == 3]
        assert all(torch.equal(old[i]["momentum_buffer"], new[i]["momentum_buffer"]) for i in head)
        assert equal(*(dict(d.model.trunk.named_parameters()) for d in (devices[0], devices[2])))


@pytest.mark.parametrize("plan", ["every batch", "local steps", "local steps, blend"])
def test_a_device_that_comes_back_goes_on_with_its_own_layers(plan):
    with session() as (make, together):
        devices = [make(number, PLANS[plan]) for number in range(2)]
        together(lambda device: device.train(8))
        whole = [copies(device.model.state_dict()) for device in devices]
    with session(rejoin_deadline_s=20) as (make, together):
        devices = [make(number, PLANS[plan]) for number in range(2)]
        together(lambda device: device.train(4))
        states = [device.state() for device in devices]
        for device in devices:
            device.exchange.close("restarted")
        back = [make(n, PLANS[plan], model=Net(seed=5), state=state) for n, state in enumerate(states)]
        together(lambda device: device.train(8), *back)
        for device, weights in zip(back, whole, strict=True):
            assert equal(device.model.state_dict(), weights)


# ---------------------------------------------------------------- options of the optimizer


def test_devices_adapt_their_damping_alike():
    with session() as (make, together):
        devices = [make(number, trust=TrustRegion(adapt_every=2)) for number in range(2)]
        with torch.no_grad():
            devices[1].model.head.weight.mul_(5)

        def loss_of(device, x, y):
            return lambda: cross_entropy(device.model(x), y).item()

        def train(device):
            for step in range(9):
                device.take(reevaluate=loss_of(device, *data(device.number, step)))
            return device.optimizer._adaptive.factor

        factors = together(train)
        assert factors[0] == factors[1] != 1
        assert torch.equal(devices[0].model.trunk[0].weight, devices[1].model.trunk[0].weight)


@pytest.mark.parametrize(
    ("plan", "personal"), [("every batch", HEAD), ("local steps", HEAD), ("local steps", ("norm",))]
)
def test_a_batch_that_is_skipped_moves_nothing_personal(plan, personal):
    with session() as (make, together):
        devices = [make(number, PLANS[plan], personal=personal, nonfinite="skip") for number in range(2)]
        together(lambda device: device.train(2))
        own = [device.own for device in devices]
        together(lambda device: device.take(bad=device.number == 1))
        assert equal(devices[1].own, own[1])
        assert not equal(devices[0].own, own[0])
        assert devices[1].optimizer.skipped == 1


def test_what_a_step_promises_is_told_apart():
    model = Plain()
    layers = [LinearLayer(name, getattr(model, name)) for name in ("trunk", "head")]
    layers[1].is_personal = True
    directions = [Direction(layer, torch.ones(layer.shape.of_gradient), 2.0 + i) for i, layer in enumerate(layers)]
    free = bounded(directions, lambda _: 0.1, kl_clip=math.inf, update_clip=math.inf)
    assert free.predicted_decrease == pytest.approx((0.1 - 0.1**2 / 2) * 2)
    assert free.common_share == pytest.approx(2 / 5)
    tight = bounded(directions, lambda _: 0.1, kl_clip=0.025, update_clip=math.inf)
    assert torch.equal(tight.directions[model.trunk.weight], torch.ones(5, 6))
    torch.testing.assert_close(tight.directions[model.head.weight], math.sqrt(0.025 / 0.03) * torch.ones(3, 5))


def test_a_personal_gradient_that_is_not_finite_is_named():
    optimizer = NewtonOptimizer(Net(), sync=EveryBatch(personal=HEAD))
    optimizer.zero_grad()
    cross_entropy(optimizer._model(data(0, 0)[0]), data(0, 0)[1]).backward()
    with torch.no_grad():
        optimizer._model.head.bias.grad[0] = math.nan
    with pytest.raises(NonFiniteGradientError, match="gradient of 'head.bias'"):
        optimizer.step()


def test_gradients_are_clipped_over_common_and_personal_layers_together():
    x, y = data(0, 0)
    by_autograd = Net()
    cross_entropy(by_autograd(x), y).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in by_autograd.parameters()])
    optimizer = NewtonOptimizer(Net(), sync=EveryBatch(personal=HEAD, clip_grad_norm=0.1))
    optimizer.zero_grad()
    cross_entropy(optimizer._model(x), y).backward()
    optimizer.step()
    for clipped, whole in zip(optimizer._model.parameters(), by_autograd.parameters(), strict=True):
        torch.testing.assert_close(clipped.grad, whole.grad * (0.1 / norm))


def test_one_device_alone_steps_otherwise_only_in_its_trust_region():
    """With no bound that holds, and damping in the unit of the same layers, a personal layer is like any other."""
    free = {"trust": TrustRegion(kl_clip=math.inf, update_clip=math.inf), "curvature": "foof"}
    models = [nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [NewtonOptimizer(models[0], **free), NewtonOptimizer(models[1], sync=EveryBatch(personal="1"), **free)]
    steps = []
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.zero_grad()
        cross_entropy(model(data(0, 0)[0]), data(0, 0)[1]).backward()
        optimizer.step()
        steps.append(optimizer._preconditioner.layers[1].estimator.state_dict()["A"])
    assert all(torch.equal(one, two) for one, two in zip(*map(list, map(tensors_within, steps)), strict=True))


def test_refreshes_are_not_put_off():
    optimizer = NewtonOptimizer(Net(), sync=EveryBatch(personal=HEAD), refresh=Refresh(warmup_steps=1))
    x, y = data(0, 0)
    optimizer.zero_grad()
    cross_entropy(optimizer._model(x), y).backward()
    optimizer.step()
    assert all(state.is_ready for state in optimizer._preconditioner.layers)
