"""A pre-norm transformer of layers that have curvature: Linear, LayerNorm and Embedding.

Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), with the normalisation before each part (Xiong et al. 2020,
https://arxiv.org/abs/2002.04745). torch's own attention keeps its projections in one bare parameter, which has none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention over tokens `[n, tokens, width]`, with a Linear for each projection."""

    def __init__(self, width: int, heads: int, *, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token takes from the others."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), self.key(x), self.value(x))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        taken: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return taken


class TransformerBlock(nn.Module):
    """Attention, then two layers for each token alone, both beside a shortcut."""

    def __init__(self, width: int, heads: int, *, is_causal: bool = False, expansion: int = 2) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, is_causal=is_causal)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, expansion * width)
        self.output = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens `[n, tokens, width]`."""
        x = x + self.attention(self.norm1(x))
        tokens: Tensor = x + self.output(F.gelu(self.hidden(self.norm2(x))))
        return tokens


class Positions(nn.Module):
    """A learned vector for each place, `[places, width]`, as an Embedding, so that it has curvature."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(places, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens `[n, tokens, width]` with their places added."""
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        placed: Tensor = x + self.table(places)
        return placed
