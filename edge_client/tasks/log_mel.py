"""The log-mel front end: how sound becomes a picture of its loudness over time and pitch.

It uses no complex numbers and no FFT, so that it exports wherever convolutions do.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TINY = 1e-10
"""Keeps the logarithm of silence finite."""


class LogMel(nn.Module):
    """Turns waveforms `[n, samples]` into `[n, 1, bands, frames]`, float32 from -1 to 1.

    Power spectra of overlapping Hann windows are summed in triangular bands that are spaced evenly on the mel scale of
    O'Shaughnessy (1987): `2595 log10(1 + f / 700)`. The logarithm is taken relative to the loudest value of each
    waveform, so that the level does not count: 1 is the loudest, -1 is `range_db` below it, or less.

    Args:
        sample_rate: samples per second.
        window: samples in a window.
        hop: samples from one window to the next; a waveform of `k * hop` samples gives `k` frames.
        bands: number of mel bands.
        lowest_hz: lower edge of the lowest band.
        highest_hz: upper edge of the highest band.
        range_db: from the loudest value to the floor.

    """

    spectrum: Tensor
    mel: Tensor

    def __init__(
        self,
        sample_rate: int = 16_000,
        window: int = 512,
        hop: int = 320,
        bands: int = 40,
        lowest_hz: float = 80.0,
        highest_hz: float = 7_600.0,
        range_db: float = 50.0,
    ) -> None:
        super().__init__()
        self.hop = hop
        self.padding = (window - hop) // 2
        self.range = range_db * math.log(10) / 10
        # Not persistent: they follow from the arguments, so a saved model need not carry them.
        self.register_buffer("spectrum", _fourier_kernels(window), persistent=False)
        self.register_buffer("mel", mel_filters(sample_rate, window, bands, lowest_hz, highest_hz), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return the log-mel pictures of waveforms."""
        padded = F.pad(waveforms.unsqueeze(1), (self.padding, self.padding))
        real, imaginary = F.conv1d(padded, self.spectrum, stride=self.hop).chunk(2, dim=1)
        energies = torch.matmul(self.mel, real.square() + imaginary.square())
        logarithms = energies.clamp(min=_TINY).log()
        relative = logarithms - logarithms.amax(dim=(1, 2), keepdim=True)
        return (relative.clamp(min=-self.range) * (2 / self.range) + 1).unsqueeze(1)


def mel_filters(sample_rate: int, window: int, bands: int, lowest_hz: float, highest_hz: float) -> Tensor:
    """Return triangular filters of peak 1, float32 `[bands, window // 2 + 1]`, that sum a power spectrum in bands."""
    frequencies = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    edges = torch.linspace(_to_mel(lowest_hz), _to_mel(highest_hz), bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (edges / 2595) - 1)
    lower, centre, upper = (edges[k : k + bands, None] for k in range(3))
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


def _to_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _fourier_kernels(window: int) -> Tensor:
    """Return a windowed real Fourier transform as kernels, cosines before sines, `[window + 2, 1, window]`."""
    time = torch.arange(window, dtype=torch.float64)
    phase = 2 * math.pi / window * torch.outer(torch.arange(window // 2 + 1, dtype=torch.float64), time)
    hann = torch.hann_window(window, dtype=torch.float64)
    return (torch.cat([phase.cos(), -phase.sin()]) * hann).float().unsqueeze(1)
