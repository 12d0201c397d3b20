"""How near rebuilt images come to those of a device: PSNR and SSIM, beside the best guess of who saw nothing."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

RANGE = 2.0
"""Between the darkest and the lightest pixel: from -1 to 1."""
MOST_DB = 120.0
"""What is nearer is as good as equal in float32."""
_WINDOW = 7
_C1, _C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2


@dataclass(frozen=True)
class Quality:
    """Of the images of one batch."""

    psnr_db: float
    """Mean over the images."""
    best_db: float
    """Of the best of them."""
    ssim: float
    """Mean over the images."""
    rebuilt: float
    """Part of the images above 20 dB."""


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratios in dB of images `[..., 1, h, w]`, at most `MOST_DB`."""
    error = (one - other).square().flatten(-3).mean(-1)
    return (10 * torch.log10(RANGE**2 / error.clamp(min=1e-30))).clamp(max=MOST_DB)


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Return the structural similarities (Wang et al. 2004) of images `[n, 1, h, w]`, with uniform windows of 7 x 7."""
    count = _WINDOW**2

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, _WINDOW, stride=1)

    m, n = mean(one), mean(other)
    scale = count / (count - 1)
    v, w = scale * (mean(one * one) - m * m), scale * (mean(other * other) - n * n)
    both = scale * (mean(one * other) - m * n)
    local = (2 * m * n + _C1) * (2 * both + _C2) / ((m * m + n * n + _C1) * (v + w + _C2))
    return local.flatten(1).mean(1)


def judge(truth: Tensor, guesses: Tensor, mean_image: Tensor) -> Quality:
    """Return how well guesses tell the images of a batch, each guess taken for the image that it suits best.

    Args:
        truth: the images, `[n, 1, h, w]`.
        guesses: as many or fewer; those that are missing, or not finite, are the mean image.
        mean_image: `[1, h, w]`, what is guessed by who knows nothing but what such images look like.

    """
    filled = mean_image.expand(len(truth), *mean_image.shape).clone()
    filled[: len(guesses)] = torch.where(guesses.isfinite(), guesses.float(), mean_image)[: len(truth)].clamp(-1, 1)
    of_pairs = psnr(truth.unsqueeze(1), filled.unsqueeze(0))
    own, guess = (torch.from_numpy(index) for index in linear_sum_assignment(of_pairs.numpy(), maximize=True))
    found = of_pairs[own, guess]
    alike = ssim(truth[own], filled[guess])
    return Quality(float(found.mean()), float(found.max()), float(alike.mean()), float((found > 20).float().mean()))
