"""Low-rank adapters: a trained model is frozen, and two thin layers beside each of its layers learn what is new.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685). The thin layers
are ordinary Linears, so that they have curvature.
"""

from collections.abc import Iterable

from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A frozen Linear `W`, and beside it `alpha / rank * B A` of rank `rank`, which is zero at first.

    Args:
        frozen: the trained layer; its parameters are frozen.
        rank: of what is learned.
        alpha: its scale; equal to the rank it is 1.

    """

    def __init__(self, frozen: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, `[..., out_features]`."""
        outputs: Tensor = self.frozen(x) + self.scale * self.up(self.down(x))
        return outputs


def add_adapters(model: nn.Module, rank: int, alpha: float | None = None, without: Iterable[str] = ()) -> None:
    """Freeze a model, and give each of its Linears an adapter in its place.

    Args:
        model: is changed.
        rank: of the adapters.
        alpha: their scale; the rank unless given.
        without: names of Linears that stay as they are.

    """
    model.requires_grad_(False)
    kept = set(without)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name not in kept:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoraLinear(layer, rank, alpha or rank))
