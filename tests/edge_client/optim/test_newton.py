import copy
import math
import pickle
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from edge_client import Curvature, EveryBatch, LocalCurvature, NewtonOptimizer, Refresh, TrustRegion
from edge_client.curvature import ESTIMATORS, capture
from edge_client.curvature.likelihood import sample_targets
from edge_client.exchange import InProcessExchange, NonFiniteGradientError

_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 6, generator=_GENERATOR)
Y = torch.randint(0, 3, (32,), generator=_GENERATOR)


class Elsewhere(InProcessExchange):
    """Takes what a device sends, as if there were others."""

    is_alone = False


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Recurrent(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.cell = nn.GRU(size, size, batch_first=True)

    def forward(self, x):
        return self.cell(x.unsqueeze(1))[0].squeeze(1)


def step(model, optimizer, x=X, y=Y) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("curvature", ESTIMATORS)
@pytest.mark.parametrize("plan", [EveryBatch, LocalCurvature])
def test_the_users_own_loop_trains(curvature, plan):
    model = small_model()
    optimizer = NewtonOptimizer(model, curvature=curvature, sync=plan())
    losses = [step(model, optimizer) for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]


def test_one_step_is_the_formula():
    model = small_model()
    optimizer = NewtonOptimizer(
        model,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.5,
        curvature=Curvature(inversion="eigen"),
        trust=TrustRegion(damping=0.02, kl_clip=float("inf"), update_clip=float("inf")),
    )
    before = copy.deepcopy(model)
    step(model, optimizer)
    nn.functional.cross_entropy(before(X), Y).backward()
    of_weights = {index: before[index].weight.grad.clone() for index in (0, 2)}
    of_biases = {index: before[index].bias.grad.clone() for index in (0, 2)}
    # The factors of both layers, formed by hand from their inputs and their pre-activation gradients.
    hidden = before[0](X).detach().requires_grad_()
    outputs = before[2](torch.tanh(hidden)).detach().requires_grad_()
    nn.functional.cross_entropy(before[2](torch.tanh(hidden)), Y, reduction="sum").backward()
    nn.functional.cross_entropy(outputs, Y, reduction="sum").backward()
    ones = torch.ones(32, 1)
    dense = {}
    for index, inputs, gradients in ((0, X, hidden.grad), (2, torch.tanh(hidden).detach(), outputs.grad)):
        inputs = torch.cat([inputs, ones], dim=1)
        dense[index] = torch.kron(inputs.T @ inputs / 32, gradients.T @ gradients / 32)
    size = sum(len(curvature) for curvature in dense.values())
    damping = 0.02 * sum(curvature.trace() for curvature in dense.values()) / size
    for index, curvature in dense.items():
        gradient = torch.cat([of_weights[index], of_biases[index][:, None]], dim=1)
        damped = curvature + damping * torch.eye(len(curvature))
        direction = torch.linalg.solve(damped, gradient.T.reshape(-1)).reshape(gradient.T.shape).T
        expected = before[index].weight.detach() * (1 - 0.1 * 0.5) - 0.1 * direction[:, :-1]
        torch.testing.assert_close(model[index].weight.detach(), expected, rtol=1e-3, atol=1e-5)


def test_one_step_with_exact_curvature_reaches_the_minimum_of_a_quadratic():
    torch.manual_seed(0)
    x, solution = torch.randn(40, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    model = nn.Linear(5, 2, bias=False).double()
    free = TrustRegion(damping=1e-12, kl_clip=float("inf"), update_clip=float("inf"))
    optimizer = NewtonOptimizer(model, lr=1.0, momentum=0.0, curvature="foof", trust=free)
    optimizer.zero_grad()
    (0.5 * (model(x) - x @ solution.T).square().sum(1).mean()).backward()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), solution)


def moved(number=0, **options):
    """Return how far the step of a number, its optimizer's first, moves each parameter, and the parameters before."""
    model = small_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = NewtonOptimizer(model, lr=0.5, trust=TrustRegion(**options))
    optimizer.load_state_dict(optimizer.state_dict() | {"sync": {"step": number}})
    step(model, optimizer)
    return [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)], before


def test_the_trust_region_scales_all_layers_together():
    free, clipped = (
        torch.cat([part.flatten() for part in moved(kl_clip=kl_clip, update_clip=float("inf"))[0]])
        for kl_clip in (float("inf"), 1e-4)
    )
    ratio = clipped.norm() / free.norm()
    assert ratio < 0.5
    torch.testing.assert_close(clipped, free * ratio, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("active", "idle"), [({"kl_clip": 1e-4}, {"update_clip": math.inf}), ({"update_clip": 0.03}, {"kl_clip": math.inf})]
)
def test_the_trust_region_shrinks_with_the_root_of_the_steps(active, idle):
    def moves(number, damping, shrink_after):
        options = {**active, **idle, "damping": damping, "shrink_after": shrink_after}
        return torch.cat([part.flatten() for part in moved(number, **options)[0]])

    first = moves(0, damping=0.02, shrink_after=50)
    torch.testing.assert_close(moves(150, damping=0.02 / 4, shrink_after=50), first / 2, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(moves(150, damping=0.02, shrink_after=math.inf), first)
    torch.testing.assert_close(moves(0, damping=0.02, shrink_after=1e-9), first)


def test_a_late_step_within_its_trust_region_is_not_shortened_but_damped():
    free = {"kl_clip": math.inf, "update_clip": math.inf}
    late, first = (moved(number, damping=damping, **free)[0] for number, damping in ((150, 0.02 / 4), (0, 0.02)))
    torch.testing.assert_close(late, first)


def test_no_layer_changes_by_more_than_its_part():
    free, before = moved(kl_clip=float("inf"), update_clip=float("inf"))
    clipped, _ = moved(kl_clip=float("inf"), update_clip=0.03)
    for weight, bias in ((0, 1), (2, 3)):  # a layer's weight and bias are one
        sizes = [torch.cat([parts[weight].flatten(), parts[bias]]).norm() for parts in (free, clipped, before)]
        assert sizes[0] > 0.03 * sizes[2]
        torch.testing.assert_close(sizes[1], 0.03 * sizes[2])
        torch.testing.assert_close(clipped[weight], free[weight] * sizes[1] / sizes[0], rtol=1e-3, atol=1e-7)


def test_weights_of_zero_can_grow():
    model = small_model()
    for parameter in model[2].parameters():
        parameter.data.zero_()
    optimizer = NewtonOptimizer(model)
    losses = [step(model, optimizer) for _ in range(3)]
    assert model[2].weight.abs().max() > 0
    assert losses[-1] < losses[0]


def test_momentum_adds_past_directions():
    # With lr = 0 the gradient stays the same: the buffer after two steps is (1 + momentum) times the direction.
    model = small_model()
    same = {"curvature": Curvature(factor_decay=0.0), "trust": TrustRegion(shrink_after=math.inf)}
    optimizer = NewtonOptimizer(model, lr=0.0, momentum=0.5, **same)
    step(model, optimizer)
    weight = model[0].weight
    once = optimizer.state[weight]["momentum_buffer"].clone()
    step(model, optimizer)
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], 1.5 * once, rtol=1e-4, atol=1e-6)


def test_param_groups_have_options_of_their_own():
    model = small_model()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = NewtonOptimizer(groups, lr=0.1, model=model)
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


@pytest.mark.parametrize("curvature", ESTIMATORS)
def test_saving_and_loading_in_the_middle_goes_on_bit_identically(curvature, tmp_path):
    options = {
        "lr": 0.05,
        "momentum": 0.9,
        "curvature": curvature,
        "refresh": Refresh(warmup_steps=3, factor_every=2, inverse_every=2, growth=1),
    }
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
    model = nn.Sequential(nn.Linear(6, 8), Recurrent(8), nn.PReLU(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"1.cell \(GRU\), 2 \(PReLU\)$") as warnings:
        optimizer = NewtonOptimizer(model, lr=0.1, momentum=0.0)
    assert len(warnings) == 1
    before = model[2].weight.detach().clone()
    step(model, optimizer)
    torch.testing.assert_close(model[2].weight.detach(), before - 0.1 * model[2].weight.grad)


def test_of_attention_the_projection_is_not_seen_but_all_else_is():
    # nn.MultiheadAttention multiplies with its projection's weight itself, so the projection has no inputs to capture.
    model = nn.TransformerEncoderLayer(6, 2, dim_feedforward=8, batch_first=True)
    expected = r"self_attn \(MultiheadAttention\), self_attn.out_proj \(NonDynamicallyQuantizableLinear\)$"
    with pytest.warns(UserWarning, match=expected):
        optimizer = NewtonOptimizer(model)
    target = torch.randn(8, 4, 6)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(X[:8, None] + target * 0.1) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_tied_weights_are_named_and_take_plain_steps():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    with pytest.warns(UserWarning, match=r"0 \(Linear, weight shared with another layer\), 2 \(Linear, weight"):
        optimizer = NewtonOptimizer(model)
    losses = [step(model, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_an_estimator_names_what_it_cannot_handle():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    with pytest.warns(UserWarning, match=r"'mkor' does not support these layers.*: 0 \(Embedding\)$"):
        NewtonOptimizer(model, curvature="mkor")


def test_mixed_precision_trains():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(X).float(), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())


def test_a_compiled_model_is_refused_and_one_compiled_afterwards_trains_alike():
    with pytest.raises(ValueError, match="compile it afterwards"):
        NewtonOptimizer(torch.compile(small_model(), backend="eager"))
    plain, compiled = small_model(), small_model()
    optimizers = [NewtonOptimizer(plain), NewtonOptimizer(compiled)]
    forward = torch.compile(compiled, backend="eager")
    for _ in range(3):
        step(plain, optimizers[0])
        step(forward, optimizers[1])
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_sampled_fisher_needs_its_loss_and_trains():
    model = small_model()
    optimizer = NewtonOptimizer(model, curvature=Curvature(fisher="sampled"))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        outputs = model(X)
        optimizer.sample_fisher(nn.functional.cross_entropy(outputs, sample_targets(outputs, generator=generator)))
        loss = nn.functional.cross_entropy(outputs, Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    lazy = NewtonOptimizer(small_model_again := small_model(), curvature=Curvature(fisher="sampled"))
    with pytest.raises(RuntimeError, match=r"step 0 needs the sampled Fisher.*optimizer.sample_fisher"):
        step(small_model_again, lazy)


def test_adaptive_damping_follows_the_quadratic_model():
    model = small_model()
    optimizer = NewtonOptimizer(model, trust=TrustRegion(adapt_every=1))

    def loss():
        return nn.functional.cross_entropy(model(X), Y)

    factors = []
    for _ in range(10):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.report(value.item())
        optimizer.step(reevaluate=lambda: loss().item())
        factors.append(optimizer.state_dict()["damping_factor"])
    assert factors[0] == 1.0  # what the first step achieved is known in the second
    assert len(set(factors)) > 1
    optimizer.zero_grad()
    loss().backward()
    with pytest.raises(ValueError, match=r"optimizer.report\(loss\) and optimizer.step\(reevaluate"):
        optimizer.step()


def test_a_device_that_takes_over_a_state_goes_on_with_its_damping():
    def take(model, optimizer):
        def loss():
            return nn.functional.cross_entropy(model(X), Y)

        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.report(value.item())
        optimizer.step(reevaluate=lambda: loss().item())

    def beginner(model):
        plan = EveryBatch()
        return NewtonOptimizer(model, trust=TrustRegion(adapt_every=1), sync=plan), plan.replica

    donor = small_model()
    optimizer, replica = beginner(donor)
    for _ in range(6):
        take(donor, optimizer)
    assert optimizer.state_dict()["damping_factor"] != 1.0
    healed = small_model()
    healed_optimizer, other_replica = beginner(healed)
    other_replica.load(replica.dump())
    for _ in range(3):
        take(donor, optimizer)
        take(healed, healed_optimizer)
        assert healed_optimizer.state_dict()["damping_factor"] == optimizer.state_dict()["damping_factor"]
    for name, weights in donor.state_dict().items():
        assert torch.equal(weights, healed.state_dict()[name])


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
    _optimizer = NewtonOptimizer(model, sync=EveryBatch(Elsewhere()))
    nn.functional.cross_entropy(model(X), Y).backward()
    with pytest.raises(RuntimeError, match=r"already sent in this step; wrap all but.*optimizer.no_sync"):
        nn.functional.cross_entropy(model(X), Y).backward()


def test_a_gradient_that_is_not_finite_names_device_layer_and_step():
    model = small_model()
    optimizer = NewtonOptimizer(model, sync=EveryBatch(InProcessExchange("gateway-7")))
    step(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteGradientError, match=r"device 'gateway-7', step 1: the .*'2.*not finite"):
        step(model, optimizer, x=X * float("nan"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_nothing_of_a_batch_outlives_its_step(fisher, monkeypatch):
    seen = []

    class Tracked(capture.Use):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(weakref.ref(self))

    monkeypatch.setattr(capture, "Use", Tracked)
    model = small_model()
    optimizer = NewtonOptimizer(model, curvature=Curvature(fisher=fisher))
    for _ in range(3):
        optimizer.zero_grad()
        outputs = model(X)
        if fisher == "sampled":
            optimizer.sample_fisher(nn.functional.cross_entropy(outputs, sample_targets(outputs)))
        nn.functional.cross_entropy(outputs, Y).backward()
        optimizer.step()
        del outputs
    assert len(seen) == 6
    assert all(reference() is None for reference in seen)


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


def test_copies_of_the_model_are_of_no_concern_to_the_optimizer():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    step(model, optimizer)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        for _ in range(2):
            nn.functional.cross_entropy(other(X), Y).backward()
    step(model, optimizer)
    assert optimizer.last_result.samples == len(X)


def test_hooks_can_be_taken_off():
    model = small_model()
    NewtonOptimizer(model).close()
    for _ in range(2):
        nn.functional.cross_entropy(model(X), Y).backward()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Curvature, {"estimator": "bfgs"}),
        (Curvature, {"factor_decay": 1.0}),
        (Curvature, {"weight_sharing": "copy"}),
        (Curvature, {"inversion": "lu"}),
        (Curvature, {"fisher": "exact"}),
        (TrustRegion, {"damping": 0.0}),
        (TrustRegion, {"kl_clip": 0.0}),
        (TrustRegion, {"update_clip": 0.0}),
        (TrustRegion, {"update_clip": float("nan")}),
        (TrustRegion, {"shrink_after": 0.0}),
        (TrustRegion, {"adapt_every": 0}),
        (Refresh, {"warmup_steps": -1}),
        (Refresh, {"factor_every": 0}),
        (Refresh, {"inverse_every": -2}),
        (LocalCurvature, {"sync_every": 0}),
        (partial(NewtonOptimizer, small_model()), {"lr": -1.0}),
        (partial(NewtonOptimizer, small_model()), {"lr": float("nan")}),
        (partial(NewtonOptimizer, small_model()), {"momentum": 1.0}),
        (partial(NewtonOptimizer, small_model()), {"weight_decay": -0.1}),
    ],
    ids=str,
)
def test_impossible_options_are_named(make, options):
    ((name, value),) = options.items()
    told = {"estimator": "curvature"}.get(name, name)
    with pytest.raises(ValueError, match=f"^{told} is {value!r}; "):
        make(**options)


def test_a_name_alone_chooses_the_estimator():
    with pytest.raises(ValueError, match="^curvature is 'bfgs'; known are kfac, eva"):
        NewtonOptimizer(small_model(), curvature="bfgs")
    with pytest.warns(FutureWarning, match="'gradients' is called 'soap' now"):
        assert Curvature("gradients") == Curvature("soap")


def test_parameters_without_their_model_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match=r"NewtonOptimizer\(model\), or NewtonOptimizer\(groups, model=model\)"):
        NewtonOptimizer(model.parameters())


def test_the_state_of_an_earlier_release_is_read():
    model = small_model()
    optimizer = NewtonOptimizer(model)
    for _ in range(3):
        step(model, optimizer)
    state = optimizer.state_dict()
    earlier = {"promised": state.pop("predicted_decrease"), "steps": state.pop("sync")["step"], **state}
    again = NewtonOptimizer(small_model())
    again.load_state_dict(earlier)
    assert again.current_step == 3
    assert again.state_dict()["predicted_decrease"] == optimizer.state_dict()["predicted_decrease"]


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="nothing is to be optimised"):
        NewtonOptimizer(nn.Linear(2, 2).requires_grad_(False))
