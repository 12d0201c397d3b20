"""A small vision transformer (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929).

It takes the mean over the tokens, which Beyer et al. 2022, "Better plain ViT baselines"
(https://arxiv.org/abs/2205.01580), found as good as a token for the class.
"""

from torch import Tensor, nn

from edge_client.tasks.transformer import Positions, TransformerBlock


class VisionTransformer(nn.Module):
    """Images `[n, 1, size, size]` to outputs `[n, labels]`: patches as tokens, blocks, the mean over the tokens."""

    def __init__(
        self, labels: int, size: int = 28, patch: int = 7, width: int = 64, heads: int = 4, depth: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.positions = Positions((size // patch) ** 2, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, labels)

    def features(self, x: Tensor) -> Tensor:
        """Return what the blocks make of images, `[n, width]`."""
        tokens = self.positions(self.patches(x).flatten(2).transpose(1, 2))
        means: Tensor = self.norm(self.blocks(tokens)).mean(dim=1)
        return means

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self.output(self.features(x))
        return outputs
