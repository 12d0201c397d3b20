import pytest
import torch

from edge_client.curvature.probe_inputs import GaussianInputs, TokenInputs


def averaged(parts, measured):
    """Return the devices' moments, weighted by their samples."""
    total = sum(map(len, parts))
    return {
        name: sum(len(part) / total * moments[name] for part, moments in zip(parts, measured, strict=True))
        for name in measured[0]
    }


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_averaged_moments_are_those_of_the_union():
    torch.manual_seed(0)
    # The mean is large against the deviation: that of float32 moments would be lost.
    parts = [100 + 0.05 * torch.randn(20, 2, 3), 100.1 + 0.02 * torch.randn(50, 2, 3), torch.zeros(0, 2, 3)]
    inputs = GaussianInputs.of_moments(averaged(parts, [GaussianInputs.measure(part) for part in parts]))
    union = torch.cat(parts).double()
    torch.testing.assert_close(inputs.mean, union.mean(dim=0).float())
    torch.testing.assert_close(inputs.deviation, union.std(dim=0, correction=0).float(), rtol=1e-5, atol=0)


def test_inputs_have_the_moments_that_they_are_drawn_by():
    wanted = GaussianInputs(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    drawn = wanted(generator(), 20_000)
    assert drawn.shape == (20_000, 2)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.mean(dim=0), wanted.mean, rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.std(dim=0), wanted.deviation, rtol=0.03, atol=0)
    assert torch.equal(drawn, wanted(generator(), 20_000))


def test_a_feature_that_is_always_the_same_still_varies():
    inputs = GaussianInputs.of_moments(GaussianInputs.measure(torch.full((5, 2), 0.1)))
    torch.testing.assert_close(inputs.deviation, torch.full((2,), 1e-3))


def test_averaged_frequencies_are_those_of_the_union():
    parts = [torch.tensor([[0, 1], [1, 1]]), torch.tensor([[3, 3]])]
    moments = averaged(parts, [TokenInputs.measure(part, 5) for part in parts])
    torch.testing.assert_close(moments["frequencies"], torch.tensor([1, 3, 0, 2, 0]).double() / 6)
    drawn = TokenInputs.of_moments(moments, (2,))(generator(), 6000)
    assert drawn.shape == (6000, 2)
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
    torch.testing.assert_close(counts, moments["frequencies"].float(), rtol=0, atol=0.02)


def test_tokens_of_no_frequency_are_drawn_alike():
    drawn = TokenInputs.uniform(4, (3,))(generator(), 4000)
    counts = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    torch.testing.assert_close(counts, torch.full((4,), 0.25), rtol=0, atol=0.02)
    nothing = TokenInputs.measure(torch.zeros(0, 3, dtype=torch.int64), 4)
    assert torch.equal(TokenInputs.of_moments(nothing, (3,))(generator(), 4000), drawn)


def test_impossible_moments_are_refused():
    with pytest.raises(ValueError, match="shapes \\(2,\\) and \\(3,\\)"):
        GaussianInputs(torch.zeros(2), torch.ones(3))
    for deviation in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="finite, and no deviation"):
            GaussianInputs(torch.zeros(1), torch.tensor([deviation]))
    with pytest.raises(ValueError, match="the token 7; known are 0 to 4"):
        TokenInputs.measure(torch.tensor([[1, 7]]), 5)
    with pytest.raises(ValueError, match="none may be negative"):
        TokenInputs(torch.tensor([0.5, -0.5]), (1,))
    with pytest.raises(ValueError, match="one for each token"):
        TokenInputs(torch.ones(2, 2), (1,))
