"""Tasks of whole numbers, and tasks whose model or preprocessing no exporter takes."""

import torch
from torch import Tensor, nn

from edge_client.tasks import Partition, Samples, Task


class Tokens(nn.Module):
    """Means of embeddings, and a linear layer: int64 `[n, 5]` to `[n, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.output = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.output(self.words(x).mean(1))
        return outputs


class Undeclared(Task):
    """It forgets to say that its samples are whole numbers."""

    name = "undeclared"
    labels = ("a", "b", "c")
    input_shape = (5,)

    def model(self) -> nn.Module:
        return Tokens()

    def decode(self, sample: object) -> Tensor:
        return torch.as_tensor(sample, dtype=self.raw_dtype)

    def train_data(self, partition: Partition) -> Samples:
        return Samples(torch.randint(11, (16, 5)), torch.randint(3, (16,)))

    test_data = train_data


class Declared(Undeclared):
    """It says so."""

    name = "declared"
    raw_dtype = torch.int64


class Narrow(Undeclared):
    """Its samples are int32."""

    name = "narrow"
    raw_dtype = torch.int32


class Bytes(Undeclared):
    """Its preprocessing makes tokens of bytes."""

    name = "bytes"
    raw_dtype = torch.uint8

    def preprocess(self, raw: Tensor) -> Tensor:
        return raw.long() % 11


class Rounded(Undeclared):
    """Its preprocessing makes tokens of numbers with a fraction."""

    name = "rounded"

    def preprocess(self, raw: Tensor) -> Tensor:
        return raw.round().long()


class Branching(Tokens):
    """What it does depends on the numbers, which no graph can say."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        return -outputs if outputs.sum() > 0 else outputs


class Branches(Declared):
    """Its model branches."""

    name = "branches"

    def model(self) -> nn.Module:
        return Branching()


class Fails(Declared):
    """Its preprocessing fails."""

    name = "fails"

    def preprocess(self, raw: Tensor) -> Tensor:
        raise KeyError("no such table")


class Counting(Tokens):
    """It asks for the size of the batch by `len`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(len(x), -1)


class Counts(Declared):
    """Its model does so."""

    name = "counts"

    def model(self) -> nn.Module:
        return Counting()


class Pairing(Tokens):
    """It tells batches of two from others."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        return outputs.roll(1, 0) if x.shape[0] == 2 else outputs


class Pairs(Declared):
    """Its model does so."""

    name = "pairs"

    def model(self) -> nn.Module:
        return Pairing()


class Sorted(Tokens):
    """It needs a kernel that ExecuTorch lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sort(1).values


class Sorts(Declared):
    """Its model sorts."""

    name = "sorts"

    def model(self) -> nn.Module:
        return Sorted()
