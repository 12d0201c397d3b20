"""Curvature of synthetic inputs against autograd, sample by sample; and that it leaves nothing behind."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from edge_client.curvature import EstimatorOptions
from edge_client.curvature.batch import Batch
from edge_client.curvature.estimators import ESTIMATORS
from edge_client.curvature.likelihood import sample_targets
from edge_client.curvature.linalg import unpack_symmetric
from edge_client.curvature.preconditioner import Preconditioner
from edge_client.curvature.probe import Probe, ProbeError
from edge_client.curvature.probe_inputs import GaussianInputs, TokenInputs
from edge_client.optim import NewtonOptimizer

SAMPLES = 12
LOSSES = {
    "categorical": cross_entropy,
    "bernoulli": lambda o, t: binary_cross_entropy_with_logits(o, t, reduction="sum") / len(o),
    "normal": lambda o, t: 0.5 * (o - t).square().sum() / len(o),
}


class Net(nn.Module):
    """Has all that a forward may change or draw, and a layer that it does not use."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.4)
        self.out = nn.Linear(3 * 16, 4)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cached", None)

    def forward(self, x):
        self.calls += 1
        self.cached = x.detach().mean()
        x = self.dropout(self.norm(self.conv(x)).relu())
        if random.random() < 0.5:
            x = x * (1 + np.random.rand())
        return self.out(x.flatten(1))


def gaussian(*shape):
    return GaussianInputs(torch.zeros(shape), torch.ones(shape))


def preconditioned(model, estimator="kfac"):
    return Preconditioner(model, list(model.parameters()), ESTIMATORS[estimator], EstimatorOptions()).layers


def probe_of(*shape, **options):
    return Probe(**{"inputs": gaussian(*shape), "loss": cross_entropy, "samples": SAMPLES} | options)


def made(seed=0, build=Net):
    torch.manual_seed(seed)
    return build()


def drawn(probe, model, number):
    """Return the inputs and targets of a probe, from its model without any hooks."""
    seen = {}

    def inputs(generator, n):
        seen["x"], seen["generator"] = probe.inputs(generator, n), generator
        return seen["x"]

    def loss(outputs, targets):
        seen["targets"] = targets
        return probe.loss(outputs, targets)

    watched = Probe(inputs, loss, probe.likelihood, probe.samples, probe.seed)
    watched.statistics(model, preconditioned(model), number)
    return seen["x"].double(), seen["targets"]


@pytest.mark.parametrize("likelihood", LOSSES)
def test_factors_of_linear_layers_are_those_of_autograd_sample_by_sample(likelihood):
    model = made(build=lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double())
    probe = probe_of(5, loss=LOSSES[likelihood], likelihood=likelihood)
    statistics = probe.statistics(model, preconditioned(model), 3)
    x, targets = drawn(probe, model, 3)
    for name, index in (("0", 0), ("2", 2)):
        module = model[index]
        A = torch.zeros(module.in_features + 1, module.in_features + 1, dtype=torch.float64)
        G = torch.zeros(module.out_features, module.out_features, dtype=torch.float64)
        for sample, target in zip(x, targets, strict=True):
            a = model[:index](sample.unsqueeze(0)).detach()
            s = module(a).detach().requires_grad_()
            (g,) = torch.autograd.grad(LOSSES[likelihood](model[index + 1 :](s), target.unsqueeze(0)), s)
            with_one = torch.cat([a[0], torch.ones(1, dtype=torch.float64)])
            A += torch.outer(with_one, with_one) / SAMPLES
            G += torch.outer(g[0], g[0]) / SAMPLES
        torch.testing.assert_close(unpack_symmetric(statistics[name]["A"], len(A))[0], A)
        torch.testing.assert_close(unpack_symmetric(statistics[name]["G"], len(G))[0], G)


def test_factors_of_a_convolution_are_those_of_autograd_position_by_position():
    model = made(build=lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)).double())
    probe = probe_of(2, 4, 4)
    statistics = probe.statistics(model, preconditioned(model), 0)["0"]
    x, targets = drawn(probe, model, 0)
    A = torch.zeros(9, 9, dtype=torch.float64)
    G = torch.zeros(3, 3, dtype=torch.float64)
    for sample, target in zip(x, targets, strict=True):
        s = model[0](sample.unsqueeze(0)).detach().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(model[1:](s), target.unsqueeze(0)), s)
        for row in range(3):
            for column in range(3):
                patch = sample[:, row : row + 2, column : column + 2].flatten()
                patch = torch.cat([patch, torch.ones(1, dtype=torch.float64)])
                A += torch.outer(patch, patch) / SAMPLES
                G += torch.outer(g[0, :, row, column], g[0, :, row, column]) / (SAMPLES * 9)
    torch.testing.assert_close(unpack_symmetric(statistics["A"], 9)[0], A)
    torch.testing.assert_close(unpack_symmetric(statistics["G"], 3)[0], G)


def test_many_samples_give_the_fisher_of_the_outputs():
    model = made(build=lambda: nn.Sequential(nn.Linear(3, 4, bias=False)).double())
    probe = probe_of(3, samples=20_000)
    G = unpack_symmetric(probe.statistics(model, preconditioned(model), 0)["0"]["G"], 4)[0]
    p = model(torch.randn(20_000, 3, dtype=torch.float64)).softmax(dim=1).detach()
    expected = torch.diag(p.mean(dim=0)) - p.T @ p / len(p)
    torch.testing.assert_close(G, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("estimator", ["kfac", "eva", "foof", "inputs_and_gradients", "mkor"])
def test_two_devices_have_equal_curvature(estimator):
    statistics = []
    for device in (0, 1):
        model = made()
        torch.manual_seed(device)
        random.seed(device)
        np.random.seed(device)
        for _ in range(device + 1):  # running moments of its own
            model(device + torch.randn(8, 1, 4, 4))
        model.zero_grad()
        layers = preconditioned(model, estimator)
        batch = batch_of(model, layers)
        cross_entropy(model(torch.randn(5 + device, 1, 4, 4)), torch.zeros(5 + device, dtype=torch.int64)).backward()
        with batch.paused():
            statistics.append(probe_of(1, 4, 4).statistics(model, layers, 7))
    one, other = statistics
    assert one.keys() == other.keys() == {"conv", "norm", "out", "unused"}
    for name in one:
        assert one[name].keys() == other[name].keys()
        assert all(torch.equal(one[name][key], other[name][key]) for key in one[name])


def test_the_mode_of_batch_norm_does_not_matter_for_its_moments():
    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    training, evaluated = made(build=build), made(build=build).eval()
    evaluated[1].running_mean.fill_(9.0)
    one, other = (probe_of(3).statistics(model, preconditioned(model), 0) for model in (training, evaluated))
    assert all(torch.equal(one[name][key], other[name][key]) for name in one for key in one[name])
    assert not evaluated[1].training


def test_number_and_seed_draw_others():
    model = made()
    layers = preconditioned(model)
    one, again, next_, other = (
        probe_of(1, 4, 4, seed=seed).statistics(model, layers, number)["out"]["G"]
        for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, next_)
    assert not torch.equal(one, other)


def batch_of(model, layers, began=None, samples_fisher=False):
    return Batch(
        model,
        layers,
        before=lambda: None if began is None else began.append(True),
        is_captured=lambda: True,
        samples_fisher=samples_fisher,
    )


def everything(model):
    """Return copies of all that a probe may not touch."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: (tensor.clone(), tensor._version, id(tensor)) for name, tensor in tensors.items()},
        {name: None if p.grad is None else (p.grad.clone(), id(p.grad)) for name, p in model.named_parameters()},
        torch.get_rng_state(),
        np.random.get_state()[1:],
        random.getstate(),
        {name: (module.training, len(module._forward_hooks)) for name, module in model.named_modules()},
        {name: list(module._buffers) for name, module in model.named_modules()},
    )


def assert_same(one, other):
    if isinstance(one, (torch.Tensor, np.ndarray)):
        assert (one == other).all()
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("when", ["before", "between", "after", "with gradients of before"])
@pytest.mark.parametrize("samples_fisher", [False, True])
def test_a_probe_leaves_no_trace(when, samples_fisher):
    def train(probes):
        model = made()
        model.norm.eval()  # its backward then needs the running moments
        layers, accumulated = preconditioned(model), []
        began = []
        batch = batch_of(model, layers, began, samples_fisher)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(accumulated.append)
        random.seed(1)
        np.random.seed(1)

        def probe(now):
            if not probes or when != now:
                return
            before, count, has_begun = everything(model), len(accumulated), list(began)
            with batch.paused(), torch.no_grad():
                assert set(probe_of(1, 4, 4).statistics(model, layers, 0)) == {"conv", "norm", "out", "unused"}
            assert_same(before, everything(model))
            assert (len(accumulated), began) == (count, has_begun)

        if when == "with gradients of before":
            cross_entropy(model(torch.ones(3, 1, 4, 4)), torch.zeros(3, dtype=torch.int64)).backward()
            batch.forget()
        probe("before")
        probe("with gradients of before")
        outputs = model(torch.randn(6, 1, 4, 4))
        loss = cross_entropy(outputs, torch.arange(6) % 4)
        probe("between")
        if samples_fisher:
            batch.sample_fisher(cross_entropy(outputs, sample_targets(outputs)))
        model.out.weight.register_post_accumulate_grad_hook(lambda _: batch.confirm())
        loss.backward()
        probe("after")
        seen = {
            "samples": batch.samples,
            "buffers": batch.buffers,
            "statistics": {state.name: batch.take_statistics(state, 0) for state in layers}
            if samples_fisher
            else {state.name: digested(batch, state) for state in layers},
        }
        gradients = {name: p.grad for name, p in model.named_parameters()}
        return seen, gradients, dict(model.named_buffers()), everything(model)[2:], len(accumulated)

    assert_same(train(probes=False), train(probes=True))


def digested(batch, state):
    """Return what the user's own backward has brought, as `digest` would see it within the backward."""
    return [(state.estimator.statistics(c.a, c.g), c.samples) for c in batch._captures[state.name].take()]


def test_a_pause_in_a_pause_lasts():
    model = made()
    began = []
    batch = batch_of(model, preconditioned(model), began)
    with batch.paused():
        with batch.paused():
            pass
        model(torch.randn(2, 1, 4, 4))
    assert not began
    model(torch.randn(2, 1, 4, 4))
    assert began == [True]


def test_a_layer_that_the_probe_does_not_reach_has_zeros():
    model = made()
    statistics = probe_of(1, 4, 4).statistics(model, preconditioned(model), 0)["unused"]
    assert {name: tuple(value.shape) for name, value in statistics.items()} == {"A": (1, 6), "G": (1, 3)}
    assert not any(value.any() for value in statistics.values())


def test_a_layer_that_no_gradient_reaches_has_zeros():
    model = made(build=lambda: nn.Sequential(nn.Linear(5, 4), Cut(), nn.Linear(4, 3)))
    statistics = probe_of(5).statistics(model, preconditioned(model), 0)
    assert not any(value.any() for value in statistics["0"].values())
    assert all(value.any() for value in statistics["2"].values())


def test_estimators_without_statistics_need_no_forward():
    model = made()
    before = everything(model)
    statistics = probe_of(1, loss=None, inputs=None).statistics(model, preconditioned(model, "soap"), 0)
    assert statistics == {"conv": {}, "norm": {}, "out": {}, "unused": {}}
    assert_same(before, everything(model))


def test_tokens_probe_an_embedding():
    model = made(build=lambda: nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(12, 3)))
    probe = Probe(TokenInputs(torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0, 0.0]), (3,)), cross_entropy, samples=400)
    A = probe.statistics(model, preconditioned(model), 0)["0"]["A"]
    torch.testing.assert_close(A / A.sum(), torch.tensor([[0.25, 0.25, 0.0, 0.0, 0.5, 0.0]]), rtol=0, atol=0.05)


def test_a_recomputed_forward_is_the_same():
    class Checkpointed(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))

    model, other = made(build=build), Checkpointed(made(build=build))
    plain = probe_of(3).statistics(model, preconditioned(model), 0)
    again = probe_of(3).statistics(other, preconditioned(other), 0)
    assert_same(plain, {name.removeprefix("net."): value for name, value in again.items()})


def test_a_compiled_part_is_probed_as_it_was_written():
    def build():
        return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))

    runs = []

    def backend(graph, _):
        return lambda *args: runs.append(True) or graph(*args)

    torch.compiler.reset()  # it compiles nn.Sequential's forward only so many times in one process
    model = nn.Sequential(made(build=build))
    whole = nn.Sequential(torch.compile(made(build=build), backend=backend))
    layers = preconditioned(whole)
    whole(torch.randn(SAMPLES, 5))
    assert runs
    runs.clear()
    expected = probe_of(5).statistics(model, preconditioned(model), 0)
    probed = probe_of(5).statistics(whole, layers, 0)
    assert_same(expected, {name.replace("_orig_mod.", ""): value for name, value in probed.items()})
    assert not runs
    whole(torch.randn(SAMPLES, 5))
    assert runs


def test_training_goes_on_as_if_no_probe_had_been():
    def train(probes):
        model = made()
        random.seed(1)
        np.random.seed(1)
        optimizer = NewtonOptimizer(model)
        x, y = torch.randn(20, 1, 4, 4), torch.randint(0, 4, (20,))

        def probe():
            if probes:
                with optimizer._batch.paused():
                    probe_of(1, 4, 4).statistics(model, optimizer._preconditioner.layers, optimizer.current_step)

        for _ in range(3):
            probe()
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            probe()
            loss.backward()
            probe()
            optimizer.step()
        return model.state_dict(), optimizer.state_dict()["curvature"]

    assert_same(train(probes=False), train(probes=True))


def test_autocast_does_not_matter():
    model = made()
    layers = preconditioned(model)
    expected = probe_of(1, 4, 4).statistics(model, layers, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(expected, probe_of(1, 4, 4).statistics(model, layers, 0))


class Cut(nn.Module):
    def forward(self, x):
        return x.detach()


def refuse(*_):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("options", "build", "problem"),
    [
        ({"inputs": refuse}, None, "the probe's inputs cannot be drawn: 'no such thing'"),
        ({"inputs": lambda generator, n: [0.0] * n}, None, "are of type list; they must be a tensor"),
        ({"inputs": lambda generator, n: torch.zeros(3, 5)}, None, "are 3x5; .* must be the 12 samples"),
        ({"inputs": lambda generator, n: torch.tensor(1.0)}, None, "are a number alone"),
        ({"inputs": lambda generator, n: torch.full((n, 5), float("nan"))}, None, "inputs are not finite"),
        ({"inputs": gaussian(6)}, None, "the model cannot take the probe's inputs, 12x6: .*shapes"),
        ({}, lambda: nn.Sequential(nn.Linear(5, 4), nn.LSTM(4, 2)), "the model returns tuple; targets"),
        ({"inputs": lambda generator, n: torch.full((n, 5), 3e38)}, None, "outputs .* are not finite"),
        ({"loss": refuse}, None, "the probe's loss cannot be computed: 'no such thing'"),
        ({"loss": lambda o, t: o}, None, "the probe's loss is not one number"),
        ({"loss": lambda o, t: cross_entropy(o, t) * float("inf")}, None, "the probe's loss is not finite"),
        ({"loss": lambda o, t: cross_entropy(o.detach(), t)}, None, "has no gradient"),
        ({"loss": lambda o, t: o.new_ones((), requires_grad=True) * 2}, None, "it reaches no preconditioned layer"),
        (
            {"likelihood": "categorical"},
            lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)),
            "no categorical targets",
        ),
    ],
)
def test_a_bad_probe_is_told_and_leaves_no_trace(options, build, problem):
    model = made(build=build or (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    layers = preconditioned(model)
    before = everything(model)
    with pytest.raises(ProbeError, match=problem):
        probe_of(5, **options).statistics(model, layers, 0)
    assert_same(before, everything(model))


def test_options_are_checked():
    for options, name in (
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
        ({"likelihood": "cauchy"}, "likelihood"),
    ):
        with pytest.raises(ValueError, match=name):
            probe_of(5, **options)


def test_a_probe_follows_the_model_s_dtype_and_copies():
    model = copy.deepcopy(made()).double()
    statistics = probe_of(1, 4, 4).statistics(model, preconditioned(model), 0)
    assert statistics["conv"]["A"].dtype == torch.float64
