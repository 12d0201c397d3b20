"""Engines: what runs a model. Each turns decoded samples into probabilities, and all agree."""

import warnings
from typing import Protocol

import torch
from torch import Tensor, nn

from edge_client.inference.artefact import Artefact
from edge_client.inference.engine_name import ENGINES, EngineName
from edge_client.inference.pipeline import Preprocessing, build_classifier
from edge_client.tasks import Task


class Engine(Protocol):
    """Runs one model. It is used by one thread at a time."""

    @property
    def name(self) -> str:
        """One of `ENGINES`."""

    def __call__(self, raw: Tensor) -> Tensor:
        """Return float32 probabilities `[n, labels]` of decoded samples `[n, *raw_shape]`."""


class TorchEngine:
    """Runs the task's own modules."""

    name = "torch"

    def __init__(self, artefact: Artefact, task: Task) -> None:
        self._pipeline = nn.Sequential(Preprocessing(task), build_classifier(artefact, task))

    @torch.inference_mode()
    def __call__(self, raw: Tensor) -> Tensor:
        """Return probabilities: see `Engine`."""
        probabilities: Tensor = self._pipeline(raw)
        return probabilities


class ExportEngine:
    """Runs the graph that `torch.export` makes of preprocessing and model.

    The graph is made when the artefact is loaded. It is not read from a file, because PyTorch's format for such files
    (.pt2) may contain pickles.
    """

    name = "export"

    def __init__(self, artefact: Artefact, task: Task) -> None:
        pipeline = nn.Sequential(Preprocessing(task), build_classifier(artefact, task))
        # Two samples, because a batch of one would be taken for a constant.
        example = torch.zeros(2, *task.raw_shape, dtype=task.raw_dtype)
        batch = torch.export.Dim("batch", min=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own
            program = torch.export.export(pipeline, (example,), dynamic_shapes=({0: batch},))
        self._graph = program.module()

    @torch.inference_mode()
    def __call__(self, raw: Tensor) -> Tensor:
        """Return probabilities: see `Engine`."""
        probabilities: Tensor = self._graph(raw)
        return probabilities


def make_engine(name: EngineName, artefact: Artefact, task: Task) -> Engine:
    """Return the engine of a name for an artefact.

    Raises:
        ArtefactError: the artefact does not fit its task, or the engine needs a package that is not installed.
        ValueError: there is no such engine.

    """
    match name:
        case "torch":
            return TorchEngine(artefact, task)
        case "export":
            return ExportEngine(artefact, task)
        case "onnx":
            from edge_client.inference.onnx_engine import OnnxEngine, import_onnx
            from edge_client.inference.onnx_export import to_onnx

            import_onnx("onnxruntime")  # before the export, which takes seconds
            return OnnxEngine(to_onnx(artefact, task))
    raise ValueError(f"engine {name!r} is unknown; known are {', '.join(ENGINES)}")
