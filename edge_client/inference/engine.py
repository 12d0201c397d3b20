"""Engines: what runs a model. Each turns decoded samples into probabilities, and all agree."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.devices import CPU, choose_device, to_device
from edge_client.inference.artefact import Artefact
from edge_client.inference.engine_name import ENGINES, EngineName
from edge_client.inference.errors import ArtefactError
from edge_client.inference.exporting import batch_graph, ensure_runs, example_inputs, example_samples, exporting
from edge_client.inference.pipeline import Preprocessing, build_classifier, preprocesses
from edge_client.tasks import Task


class Engine(Protocol):
    """Runs one model. It is used by one thread at a time."""

    @property
    def name(self) -> str:
        """One of `ENGINES`."""

    def __call__(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return probabilities `[n, labels]` of decoded samples `[n, *raw_shape]`."""


class TorchEngine:
    """Runs the task's own modules."""

    name = "torch"

    def __init__(self, artefact: Artefact, task: Task, device: torch.device = CPU) -> None:
        self._preprocessing = Preprocessing(task)
        self._classifier = build_classifier(artefact, task).to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return probabilities: see `Engine`."""
        inputs = self._preprocessing(torch.from_numpy(raw))
        return _on_host(self._classifier(to_device(inputs, self._device)))


class ExportEngine:
    """Runs the graph that `torch.export` makes of preprocessing and model.

    The graph is made when the artefact is loaded. It is not read from a file, because PyTorch's format for such files
    (.pt2) may contain pickles.
    """

    name = "export"

    def __init__(self, artefact: Artefact, task: Task, device: torch.device = CPU) -> None:
        classifier, inputs = build_classifier(artefact, task), example_inputs(task, 2)
        ensure_runs(task, classifier, inputs)
        self._preprocessing: nn.Module = nn.Identity()
        if preprocesses(task):
            with exporting(task, "the preprocessing", "a graph"):
                self._preprocessing = batch_graph(Preprocessing(task), example_samples(task, 2)).module()
        with exporting(task, "the model", "a graph"):
            self._classifier = batch_graph(classifier.to(device), inputs.to(device)).module()
        self._device = device

    @torch.inference_mode()
    def __call__(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return probabilities: see `Engine`."""
        inputs = self._preprocessing(torch.from_numpy(raw))
        return _on_host(self._classifier(to_device(inputs, self._device)))


def _on_host(probabilities: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = probabilities.cpu().numpy()
    return array


def make_engine(name: EngineName, artefact: Artefact, task: Task, device: str = "cpu") -> Engine:
    """Return the engine of a name for an artefact.

    Args:
        name: of the engine.
        artefact: the model.
        task: it is of.
        device: the hardware that the model runs on; a task's preprocessing always runs on the CPU.

    Raises:
        ArtefactError: the artefact does not fit its task, the engine needs a package that is not installed, or this
            machine, or the engine, does not have the device.
        ValueError: there is no such engine.

    """
    match name:
        case "torch":
            return TorchEngine(artefact, task, _chosen(device))
        case "export":
            return ExportEngine(artefact, task, _chosen(device))
        case "onnx":
            from edge_client.inference.onnx_engine import OnnxEngine, import_onnx
            from edge_client.inference.onnx_export import to_onnx

            import_onnx("onnxruntime")  # before the export, which takes seconds
            return OnnxEngine(to_onnx(artefact, task), device)
        case "executorch":
            from edge_client.inference.executorch_engine import ExecutorchEngine, check_executorch
            from edge_client.inference.executorch_export import to_executorch

            check_executorch(device)
            return ExecutorchEngine(to_executorch(artefact, task), device)
    raise ValueError(f"engine {name!r} is unknown; known are {', '.join(ENGINES)}")


def _chosen(device: str) -> torch.device:
    try:
        return choose_device(device)
    except ValueError as error:
        raise ArtefactError(str(error)) from None
