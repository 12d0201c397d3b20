"""A small residual network for images of one channel.

He et al. 2015, "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385), with the shortcut of
its option B.
"""

from collections.abc import Callable

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Makes a normalisation of so many channels."""
_GROUPS = 4


def group_norm(channels: int) -> nn.Module:
    """Return a GroupNorm of four groups, which needs no other sample of the batch."""
    return nn.GroupNorm(_GROUPS, channels)


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3, beside a shortcut of 1 x 1 where the shape changes."""

    def __init__(self, before: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm(channels)
        self.shortcut: nn.Module = nn.Identity()
        if before != channels or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return features `[n, channels, height, width]`."""
        inner = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        features: Tensor = (inner + self.shortcut(x)).relu()
        return features


class ResidualNetwork(nn.Module):
    """Images `[n, 1, height, width]` to outputs `[n, labels]`, through blocks at a quarter and an eighth of the size.

    The first convolution has a stride: at full size it alone would cost what the rest does.
    """

    def __init__(self, labels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.norm = norm(16)
        self.block1 = ResidualBlock(16, 32, 2, norm)
        self.block2 = ResidualBlock(32, 64, 2, norm)
        self.block3 = ResidualBlock(64, 64, 1, norm)
        self.output = nn.Linear(64, labels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        features = self.norm(self.conv(x)).relu()
        features = self.block3(self.block2(self.block1(features)))
        outputs: Tensor = self.output(features.mean(dim=(2, 3)))
        return outputs
