"""Fine-tuning: a backbone that knows the digits 0 to 4 learns 5 to 9 by a new head, or by adapters of low rank."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_client import NewtonOptimizer
from edge_client.tasks import Partition, Samples, load_task

STEPS = 60
BATCH = 32


class Adapter(nn.Module):
    """A frozen linear layer with two thin ones beside it: LoRA, https://arxiv.org/abs/2106.09685."""

    def __init__(self, base: nn.Linear, rank: int = 4, scale: float = 2.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)  # the model begins as it was
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `[n, out_features]` of inputs `[n, in_features]`."""
        return self.base(inputs) + self.scale * self.up(self.down(inputs))


def backbone() -> nn.Sequential:
    """Return a network from pixels `[n, 1, 8, 8]` to features `[n, 64]`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())


def digits(of: range, held_out: bool) -> Samples:
    """Return samples of some digits, their targets counted from 0."""
    task = load_task("digits")
    data = task.test_data(Partition()) if held_out else task.train_data(Partition())
    assert isinstance(data, Samples)
    chosen = (data.targets >= of.start) & (data.targets < of.stop)
    return Samples(data.inputs[chosen], data.targets[chosen] - of.start)


def train(model: nn.Module, data: Samples) -> NewtonOptimizer:
    """Train what requires gradients. With others: `NewtonOptimizer(model, sync=EveryBatch(exchange))`."""
    optimizer = NewtonOptimizer(model)
    for _ in range(STEPS):
        batch = torch.randint(len(data), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.inputs[batch]), data.targets[batch]).backward()
        optimizer.step()
    return optimizer


def accuracy(model: nn.Module, data: Samples) -> float:
    """Return the part of samples that is recognised."""
    with torch.inference_mode():
        return (model(data.inputs).argmax(dim=1) == data.targets).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> float:
    """Pretrain, fine-tune, and return the accuracy on the digits that are new."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", action="store_true", help="adapt the backbone's layers, too")
    parser.add_argument("--backbone", type=Path, help="where its weights are, or are put")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = given.backbone or Path(folder) / "backbone.pt"
        if not path.exists():
            pretrained = nn.Sequential(backbone(), nn.Linear(64, 5))
            train(pretrained, digits(range(5), held_out=False))
            torch.save(pretrained[0].state_dict(), path)
        body = backbone()
        body.load_state_dict(torch.load(path, weights_only=True))

    body.requires_grad_(False)
    if given.adapters:
        for place, layer in enumerate(body):
            if isinstance(layer, nn.Linear):
                body[place] = Adapter(layer)
    model = nn.Sequential(body, nn.Linear(64, 5))
    optimizer = train(model, digits(range(5, 10), held_out=False))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    with optimizer.averaged():
        found = accuracy(model, digits(range(5, 10), held_out=True))
    print(f"accuracy {found:.1%} on the digits 5 to 9, with {trained:,} weights trained")
    return found


if __name__ == "__main__":
    main()
