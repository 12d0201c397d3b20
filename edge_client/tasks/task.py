"""What a task is: a model, its loss, its data on each device, and how a raw sample becomes an input."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from edge_client.tasks.errors import SampleError, TaskError

__all__ = ["Data", "Partition", "PartitionKind", "SampleError", "Samples", "Task", "TaskError"]


@dataclass(frozen=True)
class Samples:
    """Prepared samples: inputs `[n, *input_shape]`, and targets `[n]`, or `[n, places]` for sequences."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs do not fit {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def predictions(self) -> int:
        """How many things there are to be predicted: one for each sample, or for each place of each sequence."""
        return self.targets.numel()

    @property
    def answers(self) -> Tensor:
        """What recognition should answer, `[n]`: of sequences their last place, see `Task.answer`."""
        return self.targets if self.targets.dim() == 1 else self.targets[:, -1]


Data = Samples | DataLoader[Any] | TorchDataset[Any] | Iterable[Any]
"""How a task may give its data: samples in memory; a data set of torch, of pairs of an input and a target, that is
indexed or a stream; a `DataLoader`, with workers or a collation of its own; any other iterable of batches, which are
pairs of inputs `[n, *input_shape]` and targets `[n]`."""


PartitionKind = Literal["iid", "dirichlet", "natural"]
"""How data are spread over devices: alike, with label skew, or as they come: each device has speakers, accents, places
of its own, where the task knows such groups."""


@dataclass(frozen=True)
class Partition:
    """Which part of the data is this device's: number `index` of `count` parts, and how they are spread.

    Raises:
        ValueError: there is no such part; the text names the argument and what it may be.

    """

    index: int = 0
    count: int = 1
    kind: PartitionKind = "iid"
    alpha: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"data cannot be spread over {self.count} devices; there must be at least 1")
        if not 0 <= self.index < self.count:
            raise ValueError(f"partition {self.index} does not exist; there are {self.count}, numbered from 0")
        if self.kind not in get_args(PartitionKind):
            known = ", ".join(get_args(PartitionKind))
            raise ValueError(f"partition kind {self.kind!r} is unknown; known are {known}")
        if not (self.alpha > 0 and isfinite(self.alpha)):
            raise ValueError(f"alpha is {self.alpha}; it must be above 0 and finite")
        if self.seed < 0:
            raise ValueError(f"the seed of a partition is {self.seed}; it must not be negative")


class Task(ABC):
    """A model and its data. Subclass it to train your own, and name the subclass by its import path."""

    name: str
    labels: Sequence[str]
    """What the model recognises, in the order of its outputs."""
    input_shape: tuple[int, ...]
    """Shape of one prepared sample, float32."""
    likelihood: Literal["categorical", "bernoulli", "normal"] = "categorical"
    """The distribution whose negative logarithm the loss is; a sampled Fisher draws targets from it."""
    raw_dtype: torch.dtype = torch.float32
    """Of a decoded sample."""

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one decoded sample: that of an input, unless the task preprocesses."""
        return self.input_shape

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a fresh model; who calls it has seeded torch."""

    @abstractmethod
    def train_data(self, partition: Partition) -> Data:
        """Return a device's private training samples."""

    @abstractmethod
    def test_data(self, partition: Partition) -> Data:
        """Return a device's held-out samples; those of all devices are disjoint, and together the whole test set.

        They end, and can be gone through again and again. A device may have none.
        """

    @abstractmethod
    def decode(self, sample: object) -> Tensor:
        """Return a raw sample (a path, the bytes of a file, an image, an array) as numbers, `[*raw_shape]`.

        Raises:
            SampleError: the sample is missing, damaged or of a wrong kind or size.

        """

    def preprocess(self, raw: Tensor) -> Tensor:
        """Return a batch of decoded samples, `[n, *raw_shape]`, as inputs of the model, `[n, *input_shape]`.

        It becomes a part of exported models, so it may use nothing but tensor operations.
        """
        return raw

    def prepare(self, sample: object) -> Tensor:
        """Return a raw sample as an input of the model, `[*input_shape]`.

        Raises:
            SampleError: the sample is missing, damaged or of a wrong kind or size.

        """
        return self.preprocess(self.decode(sample).unsqueeze(0)).squeeze(0)

    def true_label(self, sample: object) -> str | None:  # noqa: ARG002
        """Return the label that a raw sample carries itself, if it does."""
        return None

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return a training batch's inputs, `[n, *input_shape]`, changed at random in ways that keep their targets.

        Random numbers come from the generator, which is of the CPU as the inputs are: its seed is the device's and the
        step's, so that a device that was restarted draws the same.
        """
        return inputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch: cross entropy, unless a task knows better.

        Args:
            outputs: of the model, `[n, labels]`, or `[n, places, labels]` for sequences.
            targets: positions of labels, `[n]` or `[n, places]`.

        """
        if outputs.dim() == 3:
            outputs, targets = outputs.flatten(0, 1), targets.flatten()
        return F.cross_entropy(outputs, targets)

    def answer(self, outputs: Tensor) -> Tensor:
        """Return what recognition takes of outputs, `[n, labels]`: of sequences the last place.

        It becomes a part of exported models, so it may use nothing but tensor operations.
        """
        return outputs[:, -1] if outputs.dim() == 3 else outputs

    def probe(self, generator: torch.Generator, n: int) -> Tensor | None:  # noqa: ARG002
        """Return `n` synthetic inputs, `[n, *input_shape]`, of which devices can form the same curvature.

        They look like the data, and tell nothing of anybody's: equal on all devices, so drawn from the generator, which
        is of the CPU, and from nothing else. None stands for independent normal features, with means and deviations
        that the devices average over their own inputs.
        """
        return None

    def correct(self, outputs: Tensor, targets: Tensor) -> int:
        """Return how many predictions of a batch are right, of `Samples.predictions`: the largest output decides."""
        return int((outputs.argmax(dim=-1) == targets).sum())
