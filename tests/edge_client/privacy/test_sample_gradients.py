"""Clipped gradients of single samples, against autograd's of each sample alone."""

import pytest
import torch
from private_runs import budget_of
from seeding import seeded
from torch import nn

from edge_client import NewtonOptimizer
from edge_client.privacy import PrivacyBudgetError, SampleGradients


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 3)
    )


class Plain:
    """Exchanges gradients as they are, one parameter after the other."""

    def __init__(self, **options):
        self.budget = budget_of(**{"unit": "sample", "batch_size": 8, **options})
        self.totals, self.samples = [], 0

    def written(self, gradients):
        return torch.cat([each.flatten(1) for each in gradients.values()], dim=1)

    def take(self, total, samples):
        self.totals.append(total)
        self.samples += samples


class Tied(nn.Module):
    """One weight that is used twice, and a layer that is not trained."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.last(torch.tanh(self.frozen(torch.tanh(self.first(x)))))


@pytest.mark.parametrize(("make", "shape"), [(convolutional, (1, 8, 8)), (Tied, (6,))])
@pytest.mark.parametrize("clip_norm", [1e-3, 0.5, 1e3])
def test_each_samples_gradient_is_clipped_by_itself(make, shape, clip_norm):
    with seeded(1):
        model, inputs = make(), torch.randn(5, *shape)
    targets = torch.tensor([0, 1, 2, 0, 1])
    trained = [p for p in model.parameters() if p.requires_grad]
    expected, losses = [torch.zeros_like(p) for p in trained], []
    for x, y in zip(inputs, targets, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        each = torch.autograd.grad(loss, trained)
        norm = torch.sqrt(sum(g.square().sum() for g in each))
        for total, g in zip(expected, each, strict=True):
            total += g * min(1.0, clip_norm / float(norm))
        losses.append(loss.item())
    plan = Plain(clip_norm=clip_norm)
    gradients = SampleGradients(model, nn.functional.cross_entropy, plan, chunk_size=2)
    assert gradients.backward(inputs, targets) == pytest.approx(sum(losses) / 5, rel=1e-5)
    flat = torch.cat([each.flatten() for each in expected]).double()
    torch.testing.assert_close(plan.totals[0], flat, rtol=1e-4, atol=1e-6 * clip_norm)
    assert plan.samples == 5
    assert all(p.grad is None for p in model.parameters())


def test_no_sample_changes_the_sum_by_more_than_its_bound():
    with seeded(2):
        model = convolutional()
        inputs = 100 * torch.randn(8, 1, 8, 8)
    targets = torch.arange(8) % 3
    plan = Plain()
    gradients = SampleGradients(model, nn.functional.cross_entropy, plan)

    def flat_of(chosen):
        gradients.backward(inputs[chosen], targets[chosen])
        return plan.totals[-1]

    whole = flat_of(range(8))
    for left_out in range(8):
        change = (whole - flat_of([at for at in range(8) if at != left_out])).norm()
        assert change <= 0.5 * (1 + 1e-12)
    assert plan.budget.sensitivity == 0.5 / 8  # of the mean


def test_dropout_draws_for_each_sample():
    dropping, plan = nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 1, bias=False)), Plain(clip_norm=1e6)
    gradients = SampleGradients(dropping, lambda outputs, _: outputs.mean(), plan)
    gradients.backward(torch.ones(2, 50), torch.zeros(2))
    assert {0.0, 2.0, 4.0} == set(plan.totals[-1].tolist())
    dropping.eval()
    gradients.backward(torch.ones(2, 50), torch.zeros(2))
    assert (plan.totals[-1] == 2).all()


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), {}, "layer '1' mixes the samples of a batch"),
        (nn.Linear(2, 2), {"unit": "device"}, "unit of the privacy budget is 'device'"),
    ],
)
def test_what_has_no_gradients_of_samples_is_refused(model, options, text):
    with pytest.raises(PrivacyBudgetError, match=text):
        SampleGradients(model, nn.functional.mse_loss, Plain(**options))


def test_a_model_that_an_optimizer_watches_already_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    NewtonOptimizer(model)
    with pytest.raises(ValueError, match="make SampleGradients before the optimizer"):
        SampleGradients(model, nn.functional.mse_loss, Plain())


def test_a_loss_that_cannot_be_taken_sample_by_sample_is_refused():
    def loss(outputs, targets):
        return (outputs - targets).square().mean() if outputs.sum().item() > 0 else outputs.sum()

    gradients = SampleGradients(nn.Linear(2, 2), loss, Plain())
    with pytest.raises(PrivacyBudgetError, match="cannot be differentiated sample by sample"):
        gradients.backward(torch.zeros(4, 2), torch.zeros(4, 2))
