"""Fine-tuning: what is frozen costs no exchange, no curvature and no memory; adapters beside it have curvature."""

import copy
import gc
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import nn
from torch.nn.functional import cross_entropy

from coordinator.serving.server import embedded_coordinator
from coordinator.session.admission import Admission
from coordinator.session.members import Joining
from coordinator.session.refusal import RefusedError
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.exchange import ExchangeError
from edge_client.optim.options import Curvature
from edge_client.sync import LocalCurvature, LocalSteps
from edge_client.sync.replica import load_state
from edge_client.sync.sketching import sketch_of

WIDE = 192


class Backbone(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Flatten(),
            nn.Linear(8 * 16, WIDE),
            nn.Tanh(),
            nn.Linear(WIDE, WIDE),
            nn.LayerNorm(WIDE),
            nn.Tanh(),
            nn.Linear(WIDE, 16),
        )


class FineTuned(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone().requires_grad_(False)
        torch.manual_seed(seed)
        self.head = nn.Linear(16, 3)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x):
        return self.head(self.backbone(x))


def batch(seed=0, n=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 4, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def take(optimizer, seed=0):
    x, y = batch(seed)
    optimizer.zero_grad()
    cross_entropy(optimizer._model(x), y).backward()
    optimizer.step()


PLANS = {"every batch": EveryBatch, "local steps": lambda: LocalSteps(None, 2), "local": LocalCurvature}


def storages():
    """Return the bytes of each tensor's memory that is alive."""
    held = {}
    for tensor in gc.get_objects():
        if issubclass(type(tensor), torch.Tensor):
            with suppress(RuntimeError):  # what a compiled model of another test has left: shapes without memory
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return held


def hooks_on(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for kind in kinds)


@pytest.mark.parametrize("plan", PLANS)
def test_what_is_frozen_costs_no_exchange_no_curvature_and_no_memory(plan):
    model = FineTuned()
    frozen = sum(t.numel() * t.element_size() for t in model.backbone.state_dict().values())
    gc.collect()
    before = storages()
    optimizer = NewtonOptimizer(model, sync=PLANS[plan]())
    x, y = batch()
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    assert not any(map(hooks_on, model.backbone.modules()))
    loss.backward()
    within = storages()
    optimizer.step()
    take(optimizer)
    assert not any("backbone" in part.name for s in optimizer._sync.specs() for part in (s, *s.parts))
    assert not any(name.startswith("backbone") for name in load_state(optimizer._sync.replica.dump())["model"])
    state = optimizer.state_dict()
    assert set(state["curvature"]) == {"head"}
    assert not any(name.startswith("backbone") for name in state["sync"].get("anchor", {}))
    for held in (within, storages()):
        added = sum(size for place, size in held.items() if place not in before)
        assert added < frozen / 10
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(p._post_accumulate_grad_hooks is None for p in model.backbone.parameters())


def joined(address, device, model, **options):
    exchange = GradientExchange.connect(address, session="s", device=device, reconnect_deadline_s=20)
    return exchange, NewtonOptimizer(model, sync=EveryBatch(exchange, **options))


@pytest.mark.parametrize("personal", [(), ("backbone.0",)])
def test_devices_with_other_frozen_weights_are_refused_unless_they_are_personal(personal):
    with embedded_coordinator() as coordinator:
        coordinator.create_session("s", SessionSettings(devices=2, join_deadline_s=30))
        other = FineTuned()
        with torch.no_grad():
            other.backbone[0].weight.mul_(2)
        first, early = joined(coordinator.address, "a", FineTuned(), personal=personal)
        second, late = joined(coordinator.address, "b", other, personal=personal)
        early.join()
        if personal:
            late.join()
            assert not torch.equal(early._model.backbone[0].weight, late._model.backbone[0].weight)
        else:
            with pytest.raises(
                ExchangeError,
                match=r"'frozen_weights' is 14 tensors .* but 14 tensors .*; its 'backbone.0' differs by \d",
            ):
                late.join()
        first.close("over")
        second.close("over")


def test_frozen_weights_may_differ_by_rounding_and_no_more():
    with embedded_coordinator() as coordinator:
        coordinator.create_session("s", SessionSettings(devices=3, join_deadline_s=30))
        models = [FineTuned() for _ in range(3)]
        with torch.no_grad():
            models[1].backbone[5].weight.mul_(1 + 2e-7)
            models[2].backbone[5].weight[0, 0].add_(1e-2)
        assert not torch.equal(models[0].backbone[5].weight, models[1].backbone[5].weight)
        places = [joined(coordinator.address, device, model) for device, model in zip("abc", models, strict=True)]
        places[0][1].join()
        places[1][1].join()
        with pytest.raises(ExchangeError, match=r"'frozen_weights' is .*; its 'backbone.5.*' differs by 0.0"):
            places[2][1].join()
        for exchange, _ in places:
            exchange.close("over")


def test_once_a_session_is_resumed_either_kind_of_machine_may_come_first():
    """The record has the digest of one kind's frozen weights, and no sketch."""
    specs, weights = (TensorSpec("v", (1,)),), torch.full((4,), 2.0)
    like, unlike = (
        Joining("a", specs, {"frozen_weights": str(by)}, b"", frozen_sketch=sketch_of({"w": weights * by}, 0))
        for by in (1, 1 + 2e-7)
    )
    admission = Admission("s", SessionSettings(devices=2))
    admission.adopt(like)
    for device in (unlike, like):
        admission.check(device, {})
        admission.admit(device)
    other = replace(like, options={"frozen_weights": "other"}, frozen_sketch=sketch_of({"w": torch.ones(4)}, 0))
    with pytest.raises(RefusedError, match=r"'frozen_weights' is .*; its 'w' differs by 2.6"):
        admission.check(other, {})


def test_a_late_device_takes_over_what_is_trained_beside_its_own_frozen_weights():
    models = [FineTuned(), FineTuned(seed=4)]
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(1) as pool:
        coordinator.create_session("s", SessionSettings(devices=1, max_devices=2))
        exchange, early = joined(coordinator.address, "a", models[0])
        for step in range(3):
            take(early, step)
        second, late = joined(coordinator.address, "b", models[1])
        joining = pool.submit(late.join)
        while not joining.done():
            take(early)
        joining.result()
        received = second.traffic.received
        exchange.close("over")
        second.close("over")
    frozen = sum(tensor.nbytes for tensor in models[0].backbone.state_dict().values())
    assert 0 < received < frozen / 2
    assert not torch.equal(models[1].head.weight, FineTuned(seed=4).head.weight)
    assert late._preconditioner.layers[0].estimator.updates >= 3


def test_a_norm_that_trains_its_moments_after_all_is_named():
    model = FineTuned()
    optimizer = NewtonOptimizer(model, sync=LocalSteps(every=2))
    take(optimizer)
    model.backbone[1].train()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"'backbone.1.running_mean' is of a frozen layer .* call its eval\(\)"):
        take(optimizer)


def test_a_frozen_norm_that_trains_its_moments_has_them_averaged():
    model = FineTuned()
    model.backbone[1].train()
    optimizer = NewtonOptimizer(model, sync=EveryBatch())
    optimizer.join()
    assert {s.name for s in optimizer._sync.specs() if s.kind == "parameter"} == {
        "backbone.1.running_mean",
        "backbone.1.running_var",
    }
    take(optimizer)
    assert model.backbone[1].num_batches_tracked == 1


# ---------------------------------------------------------------- low-rank adapters


class LoRA(nn.Module):
    """A frozen linear layer with an adapter of low rank beside it (Hu et al. 2021)."""

    def __init__(self, base, rank=2, alpha=4.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * self.up(self.down(x))


def adapted():
    torch.manual_seed(1)
    return nn.Sequential(LoRA(nn.Linear(6, 8)), nn.Tanh(), LoRA(nn.Linear(8, 3)))


def table(n=24):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()


@pytest.mark.parametrize("plan", PLANS)
def test_adapters_have_the_curvature_of_their_own_inputs_and_gradients(plan):
    model, (x, y) = adapted(), table()
    with torch.no_grad():  # at first `up` is 0, and `down` has no gradient: nothing would be to see
        for module in (model[0], model[2]):
            module.up.weight.normal_(std=0.3)
    kept = copy.deepcopy(model)
    optimizer = NewtonOptimizer(model, sync=PLANS[plan](), curvature=Curvature("kfac", factor_decay=0.5))
    assert {state.name for state in optimizer._preconditioner.layers} == {"0.down", "0.up", "2.down", "2.up"}
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    first, second = kept[0], kept[2]
    low = first.down(x)
    pre = first.up(low)
    hidden = torch.tanh(first.base(x) + first.scale * pre)
    low2 = second.down(hidden)
    pre2 = second.up(low2)
    loss = cross_entropy(second.base(hidden) + second.scale * pre2, y)
    gradients = [g * len(x) for g in torch.autograd.grad(loss, (low, pre, low2, pre2))]
    inputs = {"0.down": x, "0.up": low, "2.down": hidden, "2.up": low2}
    for state, g in zip(optimizer._preconditioner.layers, gradients, strict=True):
        a = inputs[state.name].detach()
        A, G = state.estimator.A, state.estimator.G
        torch.testing.assert_close(A.value[0], a.T @ a / len(x), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(G.value[0], g.T @ g / len(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ["kfac", "foof", "soap", "eva", "mkor", "inputs_and_gradients"])
@pytest.mark.parametrize("plan", ["every batch", "local steps"])
def test_adapters_train_from_zero(plan, estimator):
    model, (x, y) = adapted(), table()
    frozen = copy.deepcopy([model[0].base.state_dict(), model[2].base.state_dict()])
    optimizer = NewtonOptimizer(model, sync=PLANS[plan](), curvature=estimator)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(model[i].up.weight.norm() > 0.05 for i in (0, 2))
    for module, before in zip((model[0], model[2]), frozen, strict=True):
        assert all(torch.equal(module.base.state_dict()[name], tensor) for name, tensor in before.items())
    assert math.isfinite(losses[-1])
