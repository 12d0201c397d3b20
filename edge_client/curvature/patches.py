"""The inputs of a convolution: patches of images, and the sample of them that is enough for the factor A."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from random import Random

import torch.nn.functional as F
from torch import Tensor

from edge_client.curvature.inputs import DenseInputs, Inputs, WeightSharing, part_width, regroup

_ROWS_FOR_EACH_FEATURE = 2
_FEWEST_POSITIONS = 4
"""In each dimension of an image."""
_SHORT_LINE = 8
"""Positions of an image's last dimension that are copied more slowly than a batch."""


@dataclass(frozen=True)
class Window:
    """Which patches of its input a convolution sees; a number for each dimension of an image."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]


class PatchInputs(Inputs):
    """Inputs that are patches of images, which are formed only where they are needed: they take much memory.

    The patches of one image overlap and are much alike; so those at some positions tell nearly as much of the factor A
    as all of them.

    Args:
        x: padded images, `[batch, channels, *size]`.
        window: of the convolution.
        blocks: groups of channels.
        has_bias: whether a last input is always 1.
        samples: what was folded into the batch dimension besides is shared; None for nothing.
        seed: draws the positions that `second_moment` is formed of; None for all.

    """

    def __init__(
        self,
        x: Tensor,
        window: Window,
        blocks: int,
        *,
        has_bias: bool,
        samples: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.has_bias = has_bias
        self._x = x
        self._window = window
        self._blocks = blocks
        self._samples = len(x) if samples is None else samples
        self._seed = seed

    @cached_property
    def formed(self) -> DenseInputs:
        """All patches; what was folded into the batch is shared."""
        return self._of(self._views())

    def second_moment(self, sharing: WeightSharing, parts: int = 1) -> Tensor:
        """Return the factor A, or an unbiased estimate of it with a seed: see `Inputs.second_moment`.

        With `reduce` it is of all positions: their mean has to be formed, but nothing large.
        """
        if self._seed is None or sharing == "reduce":
            return self.formed.second_moment(sharing, parts)
        views = self._views()
        batch, channels, *positions = views.shape[: 2 + len(self._window.size)]
        features = channels // self._blocks * prod(self._window.size) + self.has_bias
        steps = thinning(batch * prod(positions), positions, part_width(features, parts))
        if all(step == 1 for step in steps):
            return self.formed.second_moment(sharing, parts)
        draw = Random(self._seed)
        chosen = tuple(slice(draw.randrange(step), None, step) for step in steps)
        moment = self._of(views[(slice(None), slice(None), *chosen)]).second_moment(sharing, parts)
        # Each position is drawn once in so many (Horvitz & Thompson 1952).
        return moment.mul_(prod(steps))

    def mean(self) -> Tensor:
        """Return the mean over samples and shared positions, `[blocks, in]`."""
        return self.formed.mean()

    def along(self, directions: Tensor) -> Tensor:
        """Return the patches' inner products with directions, which are kernels: see `Inputs.along`."""
        n, size = directions.shape[1], self._window.size
        kernels = directions.mT.reshape(n, -1, *size).repeat(self._blocks, 1, *(1 for _ in size))
        convolve = F.conv1d if len(size) == 1 else F.conv2d
        stride, dilation = self._window.stride, self._window.dilation
        products = convolve(self._x, kernels, stride=stride, dilation=dilation, groups=self._blocks)
        by_block = products.view(len(products), self._blocks, n, -1).permute(1, 0, 3, 2)
        return regroup(by_block, self._samples)

    def norm(self) -> float:
        """Return the norm of all inputs: see `Inputs.norm`."""
        return self.formed.norm()

    def regrouped(self, samples: int) -> "PatchInputs":
        """Return the inputs with `samples` samples: see `Inputs.regrouped`."""
        return self if samples == self._samples else self._with(samples=samples)

    def sampled(self, seed: int) -> "PatchInputs":
        """Return inputs whose second moment is that of some positions: see `Inputs.sampled`."""
        return self._with(seed=seed)

    def _with(self, *, samples: int | None = None, seed: int | None = None) -> "PatchInputs":
        return PatchInputs(
            self._x,
            self._window,
            self._blocks,
            has_bias=self.has_bias,
            samples=self._samples if samples is None else samples,
            seed=self._seed if seed is None else seed,
        )

    def _views(self) -> Tensor:
        """Return all patches without copying them, `[batch, channels, *positions, *kernel]`."""
        window, views = self._window, self._x
        for dim, (size, dilation, stride) in enumerate(
            zip(window.size, window.dilation, window.stride, strict=True), start=2
        ):
            views = views.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return views

    def _of(self, views: Tensor) -> DenseInputs:
        """Return patches as rows `[blocks, samples, shared, features]`."""
        # One copy puts the kernel's positions first, which is faster than F.unfold; channels come before them, so those
        # of a group are together. Last is what is long, since that is copied in one go.
        kernel = range(views.dim() - len(self._window.size), views.dim())
        positions = range(2, kernel.start)
        batch, shared = len(views), prod(views.shape[dim] for dim in positions)
        if views.shape[positions[-1]] > _SHORT_LINE:
            patches = views.permute(1, *kernel, 0, *positions).reshape(self._blocks, -1, batch, shared)
        else:
            patches = views.permute(1, *kernel, *positions, 0).reshape(self._blocks, -1, shared, batch).mT
        return DenseInputs(regroup(patches.permute(0, 2, 3, 1), self._samples), has_bias=self.has_bias)


def thinning(rows: int, positions: Sequence[int], features: int) -> list[int]:
    """Return the distance in each dimension of the positions that are enough for a factor A: powers of two.

    Args:
        rows: patches in the batch.
        positions: of an image, in each dimension.
        features: rows of the factor.

    """
    steps = [1] * len(positions)
    while True:
        dim = max(range(len(steps)), key=lambda d: positions[d] // steps[d])
        if rows // 2 < _ROWS_FOR_EACH_FEATURE * features or positions[dim] // (2 * steps[dim]) < _FEWEST_POSITIONS:
            return steps
        steps[dim] *= 2
        rows //= 2
