import math

import numpy as np
import pytest
import torch
from scipy.signal import stft
from torch import nn

from edge_client.tasks.keywords import KeywordsTask
from edge_client.tasks.log_mel import LogMel, mel_filters


def mel_matrix(bands, bins, rate, lowest, highest):
    """Written band by band and bin by bin, from the definition."""

    def to_hertz(mel):
        return 700 * (math.exp(mel / 1127.01048) - 1)

    low, high = (1127.01048 * math.log(1 + edge / 700) for edge in (lowest, highest))
    edges = [to_hertz(low + (high - low) * k / (bands + 1)) for k in range(bands + 2)]
    matrix = np.zeros((bands, bins))
    for band in range(bands):
        left, peak, right = edges[band : band + 3]
        for k in range(bins):
            hertz = k * rate / 2 / (bins - 1)
            if left < hertz <= peak:
                matrix[band, k] = (hertz - left) / (peak - left)
            elif peak < hertz < right:
                matrix[band, k] = (right - hertz) / (right - peak)
    return matrix


def test_it_is_the_logarithm_of_a_mel_matrix_times_scipys_spectrum():
    waveform = np.random.default_rng(0).normal(size=16_000) * np.hanning(16_000) ** 4
    _, _, spectrum = stft(
        np.pad(waveform, 96), 16_000, "hann", nperseg=512, noverlap=192, boundary=None, padded=False, scaling="psd"
    )
    decibels = 10 * np.log10(mel_matrix(40, 257, 16_000, 80, 7_600) @ np.abs(spectrum) ** 2)
    expected = np.maximum(decibels - decibels.max(), -50) / 25 + 1
    picture = LogMel()(torch.from_numpy(waveform).float().unsqueeze(0))
    assert picture.shape == (1, 1, 40, 50)
    assert (expected == -1).mean() > 0.05
    assert np.allclose(picture[0, 0].numpy(), expected, atol=2e-4)


def test_filters_have_the_peaks_and_edges_of_the_mel_scale():
    assert np.allclose(mel_filters(16_000, 512, 40, 80, 7_600), mel_matrix(40, 257, 16_000, 80, 7_600), atol=1e-4)


@pytest.mark.parametrize("hertz", [150, 440, 1_000, 3_000, 7_000])
def test_a_tone_is_brightest_in_its_own_band(hertz):
    waveform = torch.sin(2 * math.pi * hertz * torch.arange(16_000) / 16_000)
    band = LogMel()(waveform.unsqueeze(0))[0, 0, :, 25].argmax().item()
    assert mel_matrix(40, 8_001, 16_000, 80, 7_600)[band, hertz] >= 0.5


def test_level_does_not_count_and_silence_gives_numbers():
    waveforms = torch.randn(3, 16_000)
    assert torch.allclose(LogMel()(waveforms), LogMel()(waveforms * 0.01), atol=1e-3)
    assert torch.isfinite(LogMel()(torch.zeros(2, 16_000))).all()


def test_it_adds_nothing_to_a_saved_model():
    assert not LogMel().state_dict()


def test_it_exports_together_with_the_model():
    task = KeywordsTask()
    whole = nn.Sequential(LogMel(16_000), task.model()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(whole, (torch.randn(3, 16_000),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 5):
        waveforms = torch.randn(count, 16_000)
        assert torch.allclose(exported(waveforms), whole(waveforms), atol=1e-6)
