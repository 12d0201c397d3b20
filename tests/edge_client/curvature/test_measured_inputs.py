"""Synthetic inputs that follow the averaged moments of several devices."""

import pytest
import torch
from edgenewton.common.options import OptionError

from edge_client.curvature.measured_inputs import MeasuredInputs


def averaged(devices: list[MeasuredInputs], sizes: list[int]) -> dict[str, torch.Tensor]:
    total = sum(sizes)
    return {
        name: sum(device.moments[name] * (size / total) for device, size in zip(devices, sizes, strict=True))
        for name in devices[0].moments
    }


def test_features_have_the_mean_and_deviation_of_all_devices_together():
    generator = torch.Generator().manual_seed(0)
    few, many = torch.randn(50, 3, generator=generator) + 4, 2 * torch.randn(150, 3, generator=generator)
    devices = [MeasuredInputs(few), MeasuredInputs(many)]
    assert not devices[0].is_settled
    with pytest.raises(RuntimeError, match="not known yet"):
        devices[0](generator, 2)
    for device in devices:
        device.settle(averaged(devices, [50, 150]))
    drawn = devices[0](torch.Generator().manual_seed(1), 50_000)
    union = torch.cat([few, many])
    assert torch.allclose(drawn.mean(0), union.mean(0), atol=0.05)
    assert torch.allclose(drawn.std(0), union.std(0, correction=0), rtol=0.02)
    assert torch.equal(drawn, devices[1](torch.Generator().manual_seed(1), 50_000))


def test_of_images_only_the_moments_of_cells_are_told():
    generator = torch.Generator().manual_seed(0)
    of_pixels = torch.linspace(-3, 3, 3 * 40 * 50).view(3, 40, 50)
    images = of_pixels + torch.randn(200, 3, 40, 50, generator=generator)
    device = MeasuredInputs(images)
    assert {moment.shape for moment in device.moments.values()} == {(3, 8, 8)}
    device.settle(device.moments)
    drawn = device(torch.Generator().manual_seed(1), 500)
    assert drawn.shape == (500, 3, 40, 50)
    for channel in range(3):
        torch.testing.assert_close(drawn[:, channel].mean(), images[:, channel].mean(), atol=0.02, rtol=0)
        torch.testing.assert_close(drawn[:, channel].std(), images[:, channel].std(), atol=0, rtol=0.05)


def test_the_moments_of_small_images_are_told_as_they_are():
    images = torch.randn(20, 1, 8, 5, generator=torch.Generator().manual_seed(0))
    device = MeasuredInputs(images)
    torch.testing.assert_close(device.moments["mean"], images.mean(0))


def test_tokens_are_as_frequent_as_on_all_devices_together():
    devices = [MeasuredInputs(torch.zeros(30, 4, dtype=torch.long), 3), MeasuredInputs(torch.full((10, 4), 2), 3)]
    devices[0].settle(averaged(devices, [30, 10]))
    drawn = devices[0](torch.Generator().manual_seed(0), 5000)
    assert drawn.shape == (5000, 4)
    frequencies = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    assert torch.allclose(frequencies, torch.tensor([0.75, 0.0, 0.25]), atol=0.02)


def test_integers_need_the_number_of_tokens():
    with pytest.raises(OptionError, match="tokens is None; integer inputs need the number of tokens"):
        MeasuredInputs(torch.zeros(3, 4, dtype=torch.long))
