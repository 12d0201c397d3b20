"""Models and loops as people write them: what torch's own optimizers take, this one takes too, or refuses in words."""

import copy
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from edge_client import Curvature, EveryBatch, LocalSteps, NewtonOptimizer, TrustRegion
from edge_client.exchange import Cause, ExchangeError, InProcessExchange, NonFiniteGradientError

_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 6, generator=_GENERATOR)
Y = torch.tanh(X @ torch.randn(6, 3, generator=_GENERATOR))
FREE = TrustRegion(kl_clip=float("inf"), update_clip=float("inf"))
STEADY = TrustRegion(shrink_after=float("inf"))


class Elsewhere(InProcessExchange):
    """Takes what a device sends, as if there were others."""

    is_alone = False


class Net(nn.Module):
    """Encodes and decodes; takes its input however it comes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.decoder = nn.Linear(6, 16), nn.Linear(16, 3)

    def encode(self, x):
        return self.encoder(x).tanh()

    def decode(self, h):
        return self.decoder(h)

    def forward(self, x):
        if isinstance(x, dict):
            x = x["inputs"]
        elif isinstance(x, (list, Holder)):
            (x,) = x
        return self.decode(self.encode(x))


@dataclass
class Holder:
    inputs: torch.Tensor

    def __iter__(self):
        return iter([self.inputs])


class Checkpointed(Net):
    """Computes its hidden layer again in backward."""

    def __init__(self, use_reentrant) -> None:
        super().__init__()
        self.hidden, self.use_reentrant = nn.Linear(16, 16), use_reentrant

    def forward(self, x):
        hidden = checkpoint(lambda h: self.hidden(h).tanh(), self.encode(x), use_reentrant=self.use_reentrant)
        return self.decode(hidden)


class Keywords(Net):
    def decode(self, h):
        return self.decoder(input=h)


class LearnedScale(Net):
    """Its scale is a layer of one vector that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.scale = nn.Parameter(torch.ones(4)), nn.Linear(4, 16)

    def decode(self, h):
        return self.decoder(h * self.scale(self.vector))


class Functional(Net):
    """Uses a layer's weight by itself too."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(16, 16)

    def decode(self, h):
        return self.decoder(self.shared(h).tanh() + nn.functional.linear(h, self.shared.weight).tanh())


def train(model, optimizer, steps=30, call=None, x=X, y=Y):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse_loss((call or (lambda m, x: m(x)))(model, x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------- how a model is called


CALLS = {
    "its methods": lambda m, x: m.decode(m.encode(x)),
    "forward itself": lambda m, x: m.forward(x),
    "a dict": lambda m, x: m({"inputs": x}),
    "a list": lambda m, x: m([x]),
    "a dataclass": lambda m, x: m(Holder(x)),
    "a keyword": lambda m, x: m(x=x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("curvature", ["kfac", "eva"])
def test_however_it_is_called_a_model_trains_alike(call, curvature):
    plain, other = Net(), Net()
    expected = train(plain, NewtonOptimizer(plain, curvature=curvature))
    optimizer = NewtonOptimizer(other, curvature=curvature)
    assert train(other, optimizer, call=call) == pytest.approx(expected, rel=1e-4)
    assert optimizer.last_result.samples == 32


def test_a_list_of_modules_is_a_model():
    parts = nn.ModuleList([Net().encoder, Net().decoder])
    optimizer = NewtonOptimizer(parts)
    losses = train(parts, optimizer, call=lambda m, x: m[1](m[0](x).tanh()))
    plain = Net()
    assert losses == pytest.approx(train(plain, NewtonOptimizer(plain)), rel=1e-4)
    assert optimizer.last_result.samples == 32


def test_models_in_one_loss_count_each_sample_once():
    models = nn.ModuleDict({"one": Net(), "other": Net()})
    optimizer = NewtonOptimizer(models)
    losses = train(models, optimizer, call=lambda m, x: m["one"](x) + m["other"](x))
    assert losses[-1] < 0.2 * losses[0]
    assert optimizer.last_result.samples == 32


def test_tokens_that_are_folded_into_the_batch_are_no_samples():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)

        def loss(self, ids):
            return nn.functional.cross_entropy(self.head(self.embed(ids).flatten(0, 1)), ids.flatten())

    model = Tokens()
    optimizer = NewtonOptimizer(model)
    model.loss(torch.randint(0, 9, (4, 7))).backward()
    optimizer.step()
    assert optimizer.last_result.samples == 4


@pytest.mark.parametrize(
    ("make", "x"),
    [(lambda: nn.Linear(6, 3), X[0]), (lambda: nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten(0)), torch.ones(1, 6, 6))],
    ids=["linear", "convolution"],
)
def test_an_input_without_a_batch_is_one_sample(make, x):
    optimizer = NewtonOptimizer(model := make())
    losses = train(model, optimizer, x=x, y=Y[0], steps=60)
    assert losses[-1] < 0.2 * losses[0]
    assert optimizer.last_result.samples == 1


@pytest.mark.parametrize("make", [Keywords, LearnedScale])
def test_layers_that_are_called_in_other_ways_train(make):
    model = make()
    optimizer = NewtonOptimizer(model)
    losses = train(model, optimizer)
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.last_result.samples == 32


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(use_reentrant):
    class Plain(Checkpointed):
        def forward(self, x):
            return self.decode(self.hidden(self.encode(x)).tanh())

    expected = train(plain := Plain(use_reentrant), NewtonOptimizer(plain))
    model = Checkpointed(use_reentrant)
    optimizer = NewtonOptimizer(model)
    assert train(model, optimizer) == pytest.approx(expected, rel=1e-3)
    assert optimizer.last_result.samples == 32


def test_a_weight_that_is_used_by_itself_takes_plain_steps_and_is_named_once():
    model = Functional()
    optimizer = NewtonOptimizer(model)
    with pytest.warns(UserWarning, match="layer shared: its gradient has a part that no call of the layer") as told:
        losses = train(model, optimizer)
    assert len(told) == 1
    assert losses[-1] < 0.1 * losses[0]
    assert not optimizer.state_dict()["curvature"]["shared"]["is_explained"]


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.Conv2d(2, 4, 3, padding=1), torch.randn(32, 2, 5, 5)),
        (lambda: nn.Conv1d(4, 6, 3, groups=2), torch.randn(32, 4, 9)),
        (lambda: nn.LayerNorm(6), torch.randn(32, 3, 6)),
        (lambda: nn.Embedding(9, 4, padding_idx=0), torch.randint(9, (32, 5))),
        (lambda: nn.Linear(40, 3), torch.randn(32, 7, 40)),
    ],
    ids=["convolution", "groups", "normalisation", "embedding", "linear"],
)
def test_any_layer_whose_weight_is_used_by_itself_is_found(make, inputs):
    for is_used in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(make())
        optimizer = NewtonOptimizer(model)
        optimizer.zero_grad()
        by_itself = model[0].weight.square().sum() if is_used else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if is_used else "error")
            (model(inputs).square().mean() + by_itself).backward()
        optimizer.step()
        assert optimizer.state_dict()["curvature"]["0"]["is_explained"] is not is_used


def test_gradients_that_are_finite_may_be_as_large_as_they_like():
    model = nn.Linear(2, 2)
    optimizer = NewtonOptimizer(model, sync=LocalSteps())
    optimizer.zero_grad()
    (1e30 * model(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    assert model.weight.isfinite().all()


@pytest.mark.parametrize("make", [Net, Keywords, LearnedScale, lambda: Checkpointed(False)])
def test_what_its_calls_explain_keeps_its_curvature(make):
    model = make()
    optimizer = NewtonOptimizer(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="layer")
        train(model, optimizer, steps=5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            train(other := make(), NewtonOptimizer(other), steps=5)


def test_a_gradient_that_is_nothing_but_rounding_is_no_reason_to_do_without_curvature():
    # A normalisation takes away what the scale before it does, whose true gradient is 0.
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, eps=1e-12), nn.BatchNorm1d(8, eps=1e-12), nn.Linear(8, 3))
    optimizer = NewtonOptimizer(model)
    train(model, optimizer, steps=3)
    assert all(layer["is_explained"] for layer in optimizer.state_dict()["curvature"].values())


def test_padding_is_no_reason_to_do_without_curvature():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8, padding_idx=0), nn.Linear(8, 3)

        def forward(self, ids):
            return self.head(self.embed(ids).mean(1))

    ids = torch.randint(0, 3, (32, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = train(model := Padded(), optimizer := NewtonOptimizer(model), x=ids)
    assert losses[-1] < losses[0]
    assert optimizer.state_dict()["curvature"]["embed"]["is_explained"]


def test_a_layer_whose_inputs_cannot_be_used_takes_plain_steps(monkeypatch):
    model = Net()
    optimizer = NewtonOptimizer(model)

    def fail(*_):
        raise RuntimeError("shape '[2, 3]' is invalid")

    monkeypatch.setattr(optimizer._preconditioner.layers[0].layer, "inputs", fail)
    with pytest.warns(UserWarning, match=r"layer encoder: what it was called with has no curvature \(shape") as told:
        losses = train(model, optimizer)
    assert len(told) == 1
    assert losses[-1] < 0.2 * losses[0]


# ---------------------------------------------------------------- samples


def test_a_forward_that_no_backward_follows_is_not_of_the_batch():
    model = Net()
    optimizer = NewtonOptimizer(model)
    optimizer.zero_grad()
    model(X[:5])
    loss = mse_loss(model(X), Y)
    model(X[:7]).sum()
    loss.backward()
    optimizer.step()
    assert optimizer.last_result.samples == 32


def test_the_user_can_say_how_many_samples_there_were():
    model = Net()
    optimizer = NewtonOptimizer(model)
    mse_loss(model(X), Y).backward()
    optimizer.step(samples=5)
    assert optimizer.last_result.samples == 5


def test_saying_it_after_gradients_have_left_is_refused():
    model = Net()
    optimizer = NewtonOptimizer(model, sync=EveryBatch(Elsewhere()))
    mse_loss(model(X), Y).backward()
    with pytest.raises(RuntimeError, match=r"as those of 32 samples; let the step send them.*overlap=False"):
        optimizer.step(samples=5)
    optimizer = NewtonOptimizer(late := Net(), sync=EveryBatch(Elsewhere(), overlap=False))
    mse_loss(late(X), Y).backward()
    optimizer.step(samples=5)
    assert optimizer.last_result.samples == 5


def traces(optimizer):
    return [state.estimator.trace for state in optimizer._preconditioner.layers]


def test_gradients_that_reach_no_parameter_are_of_no_batch():
    model, other = Net(), Net()
    optimizer, expected = NewtonOptimizer(model), NewtonOptimizer(other)
    for _ in range(6):
        optimizer.zero_grad()
        x = X.clone().requires_grad_()
        torch.autograd.grad(mse_loss(model(x), Y), x)  # as an attack or a saliency map takes it
        others = {name: (2 * p).detach().requires_grad_() for name, p in model.named_parameters()}
        torch.func.functional_call(model, others, X).sum().backward()
        optimizer.zero_grad()
        mse_loss(model(X), Y).backward()
        optimizer.step()
        assert optimizer.last_result.samples == 32
    train(other, expected, steps=6)
    assert traces(optimizer) == pytest.approx(traces(expected))


def test_several_losses_on_one_forward_are_one_batch():
    model, other = Net(), Net()
    optimizer, together = NewtonOptimizer(model), NewtonOptimizer(other)
    for _ in range(5):
        optimizer.zero_grad()
        outputs = model(X)
        (1e-2 * outputs.square().mean()).backward(retain_graph=True)
        mse_loss(outputs, Y).backward()
        optimizer.step()
        together.zero_grad()
        outputs = other(X)
        (1e-2 * outputs.square().mean() + mse_loss(outputs, Y)).backward()
        together.step()
        assert optimizer.last_result.samples == 32
    assert traces(optimizer) == pytest.approx(traces(together), rel=0.1)


def test_a_batch_is_begun_anew_by_the_models_own_zero_grad_too():
    model, other = Net(), Net()
    optimizer, expected = NewtonOptimizer(model), NewtonOptimizer(other)
    for _ in range(5):
        model.zero_grad()
        (50 * model(5 * X).square().mean()).backward()
        model.zero_grad()
        mse_loss(model(X), Y).backward()
        optimizer.step()
        assert optimizer.last_result.samples == 32
    train(other, expected, steps=5)
    assert traces(optimizer) == pytest.approx(traces(expected))


def test_an_empty_batch_changes_nothing():
    model, other = Net(), Net()
    # It is a step nevertheless, by whose number the trust region shrinks.
    optimizer, expected = (NewtonOptimizer(net, trust=STEADY) for net in (model, other))
    train(model, optimizer, steps=2)
    train(other, expected, steps=2)
    optimizer.zero_grad()
    model(X[:0]).sum().backward()
    optimizer.step()
    assert optimizer.last_result.samples == 0
    assert train(model, optimizer, steps=3) == train(other, expected, steps=3)


# ---------------------------------------------------------------- gradients between backward and step


def moved_by(edit, sync=None):
    model = Net()
    optimizer = NewtonOptimizer(model, lr=0.1, momentum=0.0, trust=FREE, sync=sync)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    mse_loss(model(X), Y).backward()
    edit(model)
    optimizer.step()
    return sum(float((p.detach() - q).norm()) for p, q in zip(model.parameters(), before, strict=True))


def test_what_is_done_to_gradients_before_the_step_counts():
    def clip(model):
        nn.utils.clip_grad_norm_(model.parameters(), 1e-6)

    def clear(model):
        for parameter in model.parameters():
            parameter.grad.zero_()

    def replace(model):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    free = moved_by(lambda _: None)
    for sync in (lambda: None, lambda: EveryBatch(Elsewhere(), overlap=False)):
        assert 0 < moved_by(clip, sync()) < 1e-4 * free
        assert moved_by(clear, sync()) == moved_by(replace, sync()) == 0
    for edit in (clip, clear, replace):
        with pytest.raises(RuntimeError, match=r"was changed after it had left.*overlap=False.*clip_grad_norm"):
            moved_by(edit, EveryBatch(Elsewhere()))


def test_a_plan_clips_what_leaves():
    expected = moved_by(lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.01))
    assert moved_by(lambda _: None, EveryBatch(Elsewhere(), clip_grad_norm=0.01)) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="clip_grad_norm is 0"):
        EveryBatch(clip_grad_norm=0)


@pytest.mark.parametrize("unscales", [True, False])
@pytest.mark.parametrize("curvature", ["kfac", "eva", "foof", "mkor", "inputs_and_gradients", "soap"])
def test_a_scaled_loss_trains_as_an_ordinary_one(unscales, curvature):
    expected = train(plain := Net(), NewtonOptimizer(plain, curvature=curvature), steps=15)
    model = Net()
    optimizer = NewtonOptimizer(model, curvature=curvature)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = mse_loss(model(X), Y)
        scaler.scale(loss).backward()
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-3)


def test_a_scaled_loss_that_overflows_skips_the_batch():
    model = Net()
    optimizer = NewtonOptimizer(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    scaler.scale(mse_loss(model(X), Y)).backward()
    scaler.step(optimizer)
    assert optimizer.skipped == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_scaled_loss_whose_gradients_have_left_is_refused_at_the_first_step():
    model = Net()
    optimizer = NewtonOptimizer(model, sync=EveryBatch(Elsewhere()))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(mse_loss(model(X), Y)).backward()
    with pytest.raises(RuntimeError, match=r"GradScaler.*overlap=False"):
        scaler.step(optimizer)


def test_after_the_step_the_gradient_is_the_synchronised_one():
    class Doubling(Elsewhere):
        def join(self, *arguments):
            place = super().join(*arguments)
            contribute = place.contribute
            place.contribute = lambda key, value: contribute(key, 2 * value if key[0] == "gradient" else value)
            return place

    model, plain = Net(), Net()
    optimizer = NewtonOptimizer(model, sync=EveryBatch(Doubling()))
    mse_loss(model(X), Y).backward()
    optimizer.step()
    mse_loss(plain(X), Y).backward()
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * other.grad)


def test_alone_a_second_backward_adds_up_as_in_torch():
    model, whole = Net(), Net()
    optimizer, other = NewtonOptimizer(model), NewtonOptimizer(whole)
    for _ in range(5):
        optimizer.zero_grad()
        for part in (slice(0, 12), slice(12, 32)):
            (mse_loss(model(X[part]), Y[part]) * len(X[part]) / 32).backward()
        optimizer.step()
        train(whole, other, steps=1)
        assert optimizer.last_result.samples == 32
    for parameter, expected in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- bad batches


BAD = X * torch.tensor([float("nan")] + [1.0] * 5)


@pytest.mark.parametrize("sync", [EveryBatch, lambda: EveryBatch(Elsewhere())], ids=["alone", "with others"])
def test_a_bad_batch_is_an_error_and_the_next_one_trains(sync):
    model = Net()
    optimizer = NewtonOptimizer(model, sync=sync())
    train(model, optimizer, steps=2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteGradientError):
        train(model, optimizer, steps=1, x=BAD)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    losses = train(model, optimizer, steps=20)
    assert losses[-1] < 0.5 * losses[0]
    # With others the step that was on goes on without this device's batch.
    assert optimizer.skipped == int(sync is not EveryBatch)


@pytest.mark.parametrize("sync", [EveryBatch, lambda: EveryBatch(Elsewhere())], ids=["alone", "with others"])
def test_a_bad_batch_can_be_skipped(sync):
    model, other = Net(), Net()
    optimizer = NewtonOptimizer(model, nonfinite="skip", sync=sync())
    train(model, optimizer, steps=2)
    train(other, NewtonOptimizer(other), steps=2)
    train(model, optimizer, steps=1, x=BAD)
    assert (optimizer.skipped, optimizer.last_result.samples) == (1, 0)
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, expected)
    assert train(model, optimizer)[-1] < 0.05
    with pytest.raises(ValueError, match="^nonfinite is 'ignore'; known are raise, skip"):
        NewtonOptimizer(model, nonfinite="ignore")


def test_a_step_that_the_exchange_failed_in_blocks_no_later_one():
    class FailsOnce(Elsewhere):
        def join(self, *arguments):
            place = super().join(*arguments)
            collect, failures = place.collect, [ExchangeError("too late", Cause.LEFT_OUT)]

            def fail_once(*told):
                if failures:
                    raise failures.pop()
                return collect(*told)

            place.collect = fail_once
            return place

    model = Net()
    optimizer = NewtonOptimizer(model, sync=EveryBatch(FailsOnce()))
    with pytest.raises(ExchangeError, match="too late"):
        train(model, optimizer, steps=1)
    losses = train(model, optimizer, steps=20)
    assert losses[-1] < 0.5 * losses[0]


def test_zero_grad_begins_a_batch_anew():
    model, other = Net(), Net()
    optimizer, expected = NewtonOptimizer(model), NewtonOptimizer(other)
    mse_loss(model(5 * X[:3]), Y[:3]).backward()
    train(model, optimizer, steps=3)
    train(other, expected, steps=3)
    for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, same)


# ---------------------------------------------------------------- parameters that come and go


def test_what_is_frozen_later_stays_where_it_is():
    model = Net()
    optimizer = NewtonOptimizer(model, momentum=0.9)
    train(model, optimizer, steps=5)
    model.encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    losses = train(model, optimizer, steps=10)
    assert torch.equal(model.encoder.weight, before["encoder.weight"])
    assert torch.equal(model.encoder.bias, before["encoder.bias"])
    assert losses[-1] < losses[0]


def test_what_is_unfrozen_trains_with_curvature_from_then_on():
    model = Net()
    model.encoder.requires_grad_(False)
    optimizer = NewtonOptimizer(model)
    train(model, optimizer, steps=3)
    model.encoder.requires_grad_(True)
    optimizer.add_param_group({"params": model.encoder.parameters(), "lr": 0.05})
    losses = train(model, optimizer, steps=20)
    assert losses[-1] < 0.2 * losses[0]
    state = optimizer.state_dict()
    assert state["curvature"]["encoder"]["is_ready"]
    assert [group["lr"] for group in state["param_groups"]] == [0.1, 0.05]


def test_what_was_frozen_in_its_group_trains_once_it_is_not():
    model = Net()
    model.encoder.requires_grad_(False)
    optimizer = NewtonOptimizer(model.parameters(), model=model)
    train(model, optimizer, steps=2)
    model.encoder.requires_grad_(True)
    before = model.encoder.weight.detach().clone()
    train(model, optimizer, steps=5)
    assert not torch.equal(model.encoder.weight, before)
    assert optimizer.state_dict()["curvature"]["encoder"]["is_ready"]


def test_parameters_that_are_not_the_models_are_refused():
    model, scale = Net(), nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"group 1 has a parameter of shape \[3\] that is not the model's"):
        NewtonOptimizer([{"params": model.parameters()}, {"params": [scale]}], model=model)
    optimizer = NewtonOptimizer(model)
    with pytest.raises(ValueError, match="not the model's"):
        optimizer.add_param_group({"params": [scale]})
    assert len(optimizer.param_groups) == 1


def test_alone_what_a_batch_does_not_use_stays_where_it_is():
    model, plain = Net(), Net()
    optimizer = NewtonOptimizer(model, momentum=0.9, weight_decay=0.1)
    train(model, optimizer, steps=2)
    before, trace = model.decoder.weight.detach().clone(), traces(optimizer)[1]
    train(model, optimizer, steps=3, call=lambda m, x: m.encode(x)[:, :3])
    assert torch.equal(model.decoder.weight, before)
    assert model.decoder.weight.grad is None
    assert traces(optimizer)[1] == trace
    assert not torch.equal(model.encoder.weight, plain.encoder.weight)


def test_in_a_session_the_tensors_are_agreed_on():
    model = Net()
    model.encoder.requires_grad_(False)
    optimizer = NewtonOptimizer(model, sync=EveryBatch(Elsewhere()))
    train(model, optimizer, steps=1)
    model.encoder.requires_grad_(True)
    with pytest.raises(RuntimeError, match="agreed on the tensors that they exchange when they joined"):
        optimizer.add_param_group({"params": model.encoder.parameters()})
    assert len(optimizer.param_groups) == 1


# ---------------------------------------------------------------- what torch's users expect besides


def test_copies_and_pickles_of_a_model_train_on_their_own():
    model = Net()
    optimizer = NewtonOptimizer(model)
    train(model, optimizer, steps=2)
    for other in (copy.deepcopy(model), AveragedModel(model), pickle.loads(pickle.dumps(model))):
        mse_loss(other(X), Y).backward()
        torch.optim.SGD(other.parameters(), 0.1).step()
    train(model, optimizer, steps=1)
    assert optimizer.last_result.samples == 32


def test_a_model_that_is_moved_takes_its_curvature_along():
    model = Net()
    optimizer = NewtonOptimizer(model)
    train(model, optimizer, steps=3)
    model.to(torch.float64)
    losses = train(model, optimizer, x=X.double(), y=Y.double())
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.state[model.encoder.weight]["momentum_buffer"].dtype is torch.float64


def test_a_closure_may_return_the_loss_as_a_tensor():
    model = Net()
    optimizer = NewtonOptimizer(model)

    def closure():
        optimizer.zero_grad()
        loss = mse_loss(model(X), Y)
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(optimizer.step(closure), torch.Tensor)


def test_the_users_own_jacobian_is_no_concern_of_the_hooks():
    model = Net()
    train(model, NewtonOptimizer(model), steps=1)
    jacobian = torch.autograd.functional.jacobian(model, X[:2], vectorize=True)
    expected = torch.autograd.functional.jacobian(copy.deepcopy(model), X[:2])
    torch.testing.assert_close(jacobian, expected)


def test_a_closed_optimizer_takes_no_step():
    model = Net()
    optimizer = NewtonOptimizer(model)
    optimizer.close()
    with pytest.raises(RuntimeError, match="the optimizer is closed"):
        optimizer.step()


def test_adaptive_damping_resumes_bit_for_bit_in_the_middle():
    def make(model):
        trust = TrustRegion(adapt_every=2, kl_clip=float("inf"), update_clip=float("inf"))
        return NewtonOptimizer(model, lr=1.5, momentum=0.95, trust=trust)

    def go_on(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = mse_loss(model(X), Y)
            loss.backward()
            optimizer.report(loss.item())
            optimizer.step(reevaluate=lambda: mse_loss(model(X), Y).item())

    for cut in (4, 5):
        model, resumed = Net(), Net()
        optimizer, again = make(model), make(resumed)
        go_on(model, optimizer, cut)
        resumed.load_state_dict(copy.deepcopy(model.state_dict()))
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        go_on(model, optimizer, 6)
        go_on(resumed, again, 6)
        for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_loss_can_be_maximised():
    model = Net()
    losses = train(model, NewtonOptimizer(model, maximize=True), steps=10)
    assert losses[-1] > 2 * losses[0]


def test_post_step_hooks_are_called():
    calls = []
    model = Net()
    optimizer = NewtonOptimizer(model)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(model, optimizer, steps=3)
    assert len(calls) == 3


def test_a_channels_last_model_trains_alike():
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))

    x = torch.randn(8, 3, 6, 6)
    expected = train(plain := model(), NewtonOptimizer(plain), x=x, y=Y[:8])
    other = model().to(memory_format=torch.channels_last)
    got = train(other, NewtonOptimizer(other), x=x.to(memory_format=torch.channels_last), y=Y[:8])
    assert got == pytest.approx(expected, rel=1e-2)


@pytest.mark.filterwarnings("ignore:the estimator")
def test_samples_are_counted_at_modules_without_curvature_too():
    parts = nn.ModuleList([nn.GRU(6, 4, batch_first=True), nn.PReLU()])
    optimizer = NewtonOptimizer(parts)
    losses = train(parts, optimizer, call=lambda m, x: m[1](m[0](x.unsqueeze(1))[0].squeeze(1))[:, :3])
    assert losses[-1] < losses[0]
    assert optimizer.last_result.samples == 32


def test_the_part_of_the_parameters_without_curvature_is_told():
    model = nn.Sequential(nn.LSTM(6, 4), nn.Linear(4, 3))
    with pytest.warns(UserWarning, match=r"their parameters, 93% of the model's, take plain.*: 0 \(LSTM\)$"):
        NewtonOptimizer(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.DataParallel(Net()), "the model itself is wrapped in DataParallel.*model.module"),
        (nn.Sequential(nn.Linear(2, 2, device="meta")), "parameter '0.weight' is on the device 'meta'"),
        (nn.Linear(2, 2, dtype=torch.complex64), "parameter 'weight' is complex"),
        (nn.Sequential(nn.Embedding(4, 3, sparse=True)), r"0 \(Embedding\) has sparse=True.*sparse=False"),
        (nn.ModuleDict({"e": nn.EmbeddingBag(4, 3, sparse=True)}), r"e \(EmbeddingBag\) has sparse=True"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_that_cannot_be_trained_are_refused_by_name(model, message):
    with pytest.raises(ValueError, match=message):
        NewtonOptimizer(model)


def test_a_sampled_fisher_does_not_mind_other_forwards():
    model = Net()
    optimizer = NewtonOptimizer(model, curvature=Curvature(fisher="sampled"))
    for _ in range(3):
        optimizer.zero_grad()
        outputs = model(X)
        optimizer.sample_fisher(mse_loss(outputs, outputs.detach() + torch.randn_like(outputs)))
        model(X[:4])
        mse_loss(outputs, Y).backward()
        optimizer.step()
    assert optimizer.last_result.samples == 32
