import copy

import pytest
import torch
from torch import nn

from edge_client import NewtonOptimizer
from edge_client.exchange import InProcessExchange, NonFiniteGradientError

_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 6, generator=_GENERATOR)
Y = torch.randint(0, 3, (32,), generator=_GENERATOR)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def step(model, optimizer, x=X, y=Y) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("curvature", ["kfac", "eva"])
@pytest.mark.parametrize("curvature_scope", ["shared", "local"])
def test_the_users_own_loop_trains(curvature, curvature_scope):
    model = small_model()
    optimizer = NewtonOptimizer(model, curvature=curvature, curvature_scope=curvature_scope)
    losses = [step(model, optimizer) for _ in range(40)]
    assert losses[-1] < 0.6 * losses[0]


def test_one_step_is_the_formula():
    model = small_model()
    optimizer = NewtonOptimizer(
        model, lr=0.1, momentum=0.0, damping=0.02, kl_clip=float("inf"), weight_decay=0.5, curvature="kfac"
    )
    before = copy.deepcopy(model)
    step(model, optimizer)
    nn.functional.cross_entropy(before(X), Y).backward()
    # The first layer's factors, formed by hand from its inputs and its pre-activation gradients.
    inputs = torch.cat([X, torch.ones(32, 1)], dim=1)
    hidden = before[0](X).detach().requires_grad_()
    nn.functional.cross_entropy(before[2](torch.tanh(hidden)), Y, reduction="sum").backward()
    A, G = inputs.T @ inputs / 32, hidden.grad.T @ hidden.grad / 32
    gradient = torch.cat([before[0].weight.grad, before[0].bias.grad[:, None]], dim=1)
    dense = torch.kron(A, G) + 0.02 * torch.eye(7 * 8)
    direction = torch.linalg.solve(dense, gradient.T.reshape(-1)).reshape(7, 8).T
    expected = before[0].weight.detach() * (1 - 0.1 * 0.5) - 0.1 * direction[:, :-1]
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-3, atol=1e-5)


def test_the_trust_region_scales_all_layers_together():
    steps = {}
    for kl_clip in (float("inf"), 1e-4):
        model = small_model()
        before = [p.detach().clone() for p in model.parameters()]
        step(model, NewtonOptimizer(model, lr=0.5, kl_clip=kl_clip))
        moved = [(p.detach() - q).flatten() for p, q in zip(model.parameters(), before, strict=True)]
        steps[kl_clip] = torch.cat(moved)
    free, clipped = steps.values()
    ratio = clipped.norm() / free.norm()
    assert ratio < 0.5
    torch.testing.assert_close(clipped, free * ratio, rtol=1e-3, atol=1e-7)


def test_momentum_adds_past_directions():
    # With lr = 0 the gradient stays the same: the buffer after two steps is (1 + momentum) times the direction.
    model = small_model()
    optimizer = NewtonOptimizer(model, lr=0.0, momentum=0.5, ema=0.0)
    step(model, optimizer)
    weight = model[0].weight
    once = optimizer.state[weight]["momentum_buffer"].clone()
    step(model, optimizer)
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], 1.5 * once, rtol=1e-4, atol=1e-6)


def test_param_groups_have_options_of_their_own():
    model = small_model()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = NewtonOptimizer(model, lr=0.1, param_groups=groups)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])


def test_learning_rate_schedulers_work():
    model = small_model()
    optimizer = NewtonOptimizer(model, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.0)
    for _ in range(2):
        step(model, optimizer)
        scheduler.step()
    frozen = model[0].weight.detach().clone()
    step(model, optimizer)
    assert torch.equal(model[0].weight, frozen)


@pytest.mark.parametrize("curvature", ["kfac", "eva"])
def test_saving_and_loading_in_the_middle_goes_on_bit_identically(curvature, tmp_path):
    options = {"lr": 0.05, "momentum": 0.9, "curvature": curvature, "factor_every": 2, "inverse_every": 2}
    model = small_model()
    optimizer = NewtonOptimizer(model, **options)
    for _ in range(5):
        step(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    for _ in range(5):
        step(model, optimizer)

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = small_model()
    resumed.load_state_dict(state["model"])
    again = NewtonOptimizer(resumed, **options)
    again.load_state_dict(state["optimizer"])
    for _ in range(5):
        step(resumed, again)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_of_another_model_is_refused():
    other = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"curvature for the layers \['0', '2'\], but the optimizer has \['0'\]"):
        NewtonOptimizer(other).load_state_dict(NewtonOptimizer(small_model()).state_dict())


def test_layers_without_an_estimator_are_named_once_and_take_plain_steps():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.PReLU(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"1 \(LayerNorm\), 2 \(PReLU\)$") as warnings:
        optimizer = NewtonOptimizer(model, lr=0.1, momentum=0.0)
    assert len(warnings) == 1
    before = model[1].weight.detach().clone()
    step(model, optimizer)
    torch.testing.assert_close(model[1].weight.detach(), before - 0.1 * model[1].weight.grad)


def test_frozen_and_unused_parameters():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.used(x))

    model = Model()
    before = copy.deepcopy(model.state_dict())
    step(model, NewtonOptimizer(model, lr=0.1))
    assert not torch.equal(model.used.weight, before["used.weight"])
    assert torch.equal(model.unused.weight, before["unused.weight"])
    assert torch.equal(model.frozen.weight, before["frozen.weight"])


def test_accumulated_gradients_are_sent_once():
    model, whole = small_model(), small_model()
    optimizer = NewtonOptimizer(model, lr=0.0)
    with optimizer.no_sync():
        (nn.functional.cross_entropy(model(X[:16]), Y[:16]) / 2).backward()
    (nn.functional.cross_entropy(model(X[16:]), Y[16:]) / 2).backward()
    optimizer.step()
    nn.functional.cross_entropy(whole(X), Y).backward()
    assert optimizer.last_result.samples == 32
    torch.testing.assert_close(optimizer.last_result.tensors["gradient", "0.weight"], whole[0].weight.grad)


def test_a_second_backward_in_a_step_says_what_to_do():
    model = small_model()
    NewtonOptimizer(model)
    nn.functional.cross_entropy(model(X), Y).backward()
    with pytest.raises(RuntimeError, match=r"already sent in this step; wrap all but.*optimizer.no_sync"):
        nn.functional.cross_entropy(model(X), Y).backward()


def test_a_gradient_that_is_not_finite_names_device_layer_and_step():
    model = small_model()
    optimizer = NewtonOptimizer(model, exchange=InProcessExchange("gateway-7"))
    step(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteGradientError, match=r"device 'gateway-7', step 1: the .*'2.*not finite"):
        step(model, optimizer, x=X * float("nan"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_closure_gives_the_loss():
    model = small_model()
    optimizer = NewtonOptimizer(model)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        return loss.item()

    expected = nn.functional.cross_entropy(model(X), Y).item()
    assert optimizer.step(closure) == pytest.approx(expected)


def test_evaluation_between_steps_leaves_no_trace():
    model, other = small_model(), small_model()
    one, two = NewtonOptimizer(model), NewtonOptimizer(other)
    step(model, one)
    with torch.no_grad():
        model(X[:5])
    step(model, one)
    step(other, two)
    step(other, two)
    assert torch.equal(model[0].weight, other[0].weight)


def test_hooks_can_be_taken_off():
    model = small_model()
    NewtonOptimizer(model).close()
    for _ in range(2):
        nn.functional.cross_entropy(model(X), Y).backward()


@pytest.mark.parametrize(
    "options",
    [
        {"curvature": "bfgs"},
        {"curvature_scope": "global"},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"damping": 0.0},
        {"kl_clip": 0.0},
        {"ema": 1.0},
        {"momentum": 1.0},
        {"average_every": 0},
        {"factor_every": 0},
        {"inverse_every": -2},
    ],
    ids=str,
)
def test_impossible_options_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} is"):
        NewtonOptimizer(small_model(), **options)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="nothing is to be optimised"):
        NewtonOptimizer(nn.Linear(2, 2).requires_grad_(False))
