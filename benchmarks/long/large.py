"""Tasks for a GPU: the data of two tasks of the benchmark, with networks too large for one core."""

from torch import Tensor, nn

from benchmarks.convergence.resnet import resnet18
from edge_client.tasks.fashion import FashionTask
from edge_client.tasks.text import ALPHABET, TextModel, TextTask


class GrayResNet18(nn.Module):
    """ResNet-18 for images of one channel, `[n, 1, height, width]`."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.network = resnet18(labels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self.network(x.expand(-1, 3, -1, -1))
        return outputs


class FashionResNet18Task(FashionTask):
    """Fashion-MNIST with ResNet-18."""

    name = "fashion-resnet18"

    def model(self) -> nn.Module:
        """Return the network (11.2 million parameters)."""
        return GrayResNet18(len(self.labels))


class LargeTextTask(TextTask):
    """Sayings with a transformer of six blocks of width 256."""

    name = "text-large"

    def model(self) -> nn.Module:
        """Return the network (3.2 million parameters)."""
        return TextModel(len(ALPHABET), width=256, heads=8, depth=6)
