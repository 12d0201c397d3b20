"""The zoo's models as tasks with one input, so that they are exported as any model is.

A sample is one row of numbers, from which the model's inputs are cut out again; what the model gives is laid out as one
row, as if it were the outputs of as many labels.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.zoo.batches import (
    CLASSES,
    NODES,
    contrasted,
    graphs_classified,
    last_classified,
    reconstructed,
    row_classified,
    sparsely_classified,
)
from benchmarks.zoo.case import SAMPLES, Batch, Case, own_loss
from edge_client.inference import Artefact
from edge_client.inference.engine import TorchEngine, make_engine
from edge_client.inference.engine_name import EngineName
from edge_client.tasks import Partition, Samples, Task

RTOL, ATOL = 1e-3, 1e-5
"""Of the probabilities of an exported model, beside torch's."""

Inputs = Mapping[str, Tensor]


def _logits(model: nn.Module, inputs: Inputs) -> Tensor:
    outputs = model(**inputs)
    for name in ("logits", "prediction_outputs"):
        if name in outputs:
            found: Tensor = outputs[name]
            return found
    return torch.stack(outputs.params, dim=-1)  # those of a distribution


def _embeddings(model: nn.Module, inputs: Inputs) -> Tensor:
    outputs = model(**inputs)
    return torch.cat([outputs.text_embeds, outputs.image_embeds], dim=1)


def _reconstruction(model: nn.Module, inputs: Inputs) -> Tensor:
    decoded: Tensor = model.get_submodule("decoder")(model.get_submodule("encoder")(inputs["x"]))
    return decoded


def _of_graphs(model: nn.Module, inputs: Inputs) -> Tensor:
    count = inputs["x"].shape[0]  # len() would be a constant of the graph
    edges = inputs["edges"] + NODES * torch.arange(count)[:, None, None]
    outputs: Tensor = model(inputs["x"].flatten(0, 1), edges.transpose(0, 1).flatten(1))
    return outputs.view(count, NODES, CLASSES).mean(1)


def _in_order(model: nn.Module, inputs: Inputs) -> Tensor:
    outputs: Tensor = model(*inputs.values())
    return outputs


_RECOGNISE: dict[Callable[..., Tensor], Callable[[nn.Module, Inputs], Tensor]] = {
    own_loss: _logits,
    contrasted: _embeddings,
    reconstructed: _reconstruction,
    graphs_classified: _of_graphs,
    row_classified: _in_order,
    last_classified: lambda model, inputs: _in_order(model, inputs)[:, :, -1],
    sparsely_classified: lambda model, inputs: model(*inputs.values())[0],
}
"""What recognition makes of a model, by the loss that it is trained with."""


def recognised(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return what of a batch recognition gives a model, each with a row for each sample."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if "edges" in inputs:  # the batch is one graph, which falls into pieces
        edges = inputs["edges"].unflatten(1, (SAMPLES, -1)).transpose(0, 1)
        inputs["edges"] = edges - NODES * torch.arange(SAMPLES)[:, None, None]
        inputs["x"] = inputs["x"].unflatten(0, (SAMPLES, NODES))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and "labels" in batch:
        inputs["decoder_input_ids"] = batch["labels"]
    return inputs


class OneInput(nn.Module):
    """A model behind rows `[n, numbers]` that hold all its inputs; gives `[n, outputs]`."""

    def __init__(self, model: nn.Module, case: Case) -> None:
        super().__init__()
        self.model = model
        self._recognise = _RECOGNISE.get(case.loss, _in_order)
        inputs = recognised(model, case.batch_of(0))
        self._parts = {name: (example.shape[1:], example.dtype) for name, example in inputs.items()}

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs."""
        inputs, place = {}, 0
        for name, (shape, dtype) in self._parts.items():
            end = place + math.prod(shape)
            inputs[name] = rows[:, place:end].reshape(-1, *shape).to(dtype)
            place = end
        return self._recognise(self.model, inputs).flatten(1)


class ZooTask(Task):
    """A model of the zoo; its samples are rows of numbers, whole ones if all inputs are tokens."""

    def __init__(self, name: str, case: Case) -> None:
        self.name = name
        self._case = case
        rows = self.rows(0)
        self.raw_dtype = rows.dtype
        self.input_shape = tuple(rows.shape[1:])
        with torch.no_grad():
            self.labels = [str(number) for number in range(self.model().eval()(rows).shape[1])]

    def rows(self, number: int) -> Tensor:
        """Return the samples of a batch, `[n, numbers]`."""
        inputs = recognised(self._case.model(), self._case.batch_of(number))
        return torch.cat([value.flatten(1) for value in inputs.values()], dim=1)  # the widest dtype holds all

    def model(self) -> nn.Module:
        """Return the model, with the same weights each time."""
        return OneInput(self._case.model(), self._case)

    def decode(self, sample: object) -> Tensor:
        """Return a sample that is a tensor already."""
        assert isinstance(sample, Tensor)
        return sample

    def train_data(self, partition: Partition) -> Samples:  # noqa: ARG002
        """Return a batch."""
        rows = self.rows(0)
        return Samples(rows, torch.zeros(len(rows), dtype=torch.int64))

    test_data = train_data


def largest_difference(name: str, case: Case, engine: EngineName) -> float:
    """Export a model, and compare its probabilities with torch's on two batches of different sizes.

    Returns:
        The largest difference of a probability.

    Raises:
        ArtefactError: it cannot be exported; the text says why.
        AssertionError: they differ by more than `RTOL` and `ATOL`.

    """
    task = ZooTask(name, case)
    artefact = Artefact.of(task, f"zoo:{name}", task.model(), 0)
    exported, original = make_engine(engine, artefact, task), TorchEngine(artefact, task)
    difference = 0.0
    for rows in (task.rows(1), task.rows(2)[:1]):
        found, expected = exported(rows.numpy()), original(rows.numpy())
        np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)
        difference = max(difference, float(np.abs(found - expected).max()))
    return difference
