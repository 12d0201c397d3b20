"""Exports models to ONNX: preprocessing, model and softmax in one graph, any batch; in float32 or in int8.

The model and the preprocessing are exported on their own and joined then, so that only the model is quantised.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgenewton.common.files import write_atomically
from torch import Tensor, nn

from edge_client.inference.artefact import Artefact
from edge_client.inference.errors import ArtefactError
from edge_client.inference.exporting import batch_graph, ensure_runs, example_inputs, example_samples, exporting
from edge_client.inference.model import ModelInfo
from edge_client.inference.onnx_engine import FORMAT_VERSION, INFO_KEY, INPUT, OUTPUT, import_onnx, seal
from edge_client.inference.onnx_overflow import keep_overflows, refuse_overflows
from edge_client.inference.pipeline import Preprocessing, build_classifier, preprocesses
from edge_client.tasks import Partition, Samples, Task
from edge_client.tasks.data import first_inputs, in_memory

CALIBRATION_SAMPLES = 256
_INPUTS = "inputs"
_QUANTISED = ["Conv", "Gemm", "MatMul"]


@dataclass(frozen=True)
class QuantisedModel:
    """An int8 model, with its accuracy beside the float one's on the same held-out samples."""

    content: bytes
    accuracy: float
    float_accuracy: float
    samples: int


def to_onnx(artefact: Artefact, task: Task) -> bytes:
    """Return an artefact as the bytes of a float32 ONNX file.

    Raises:
        ArtefactError: the artefact does not fit its task, its model cannot be exported, or the extra `onnx` is not
            installed.

    """
    return _assemble(keep_overflows(_export_classifier(artefact, task)), artefact, task)


def to_int8_onnx(artefact: Artefact, task: Task) -> QuantisedModel:
    """Quantise an artefact after training, and try it.

    Weights and activations of convolutions and matrix products become int8, with ranges that are taken from training
    samples (static quantisation, QDQ format). Accuracies are those on the task's held-out samples.

    Raises:
        ArtefactError: the artefact does not fit its task, its model cannot be exported, or the extra `onnx` is not
            installed.

    """
    whole = Partition()
    held_out = in_memory(task, task.test_data(whole))
    if not len(held_out):
        raise ArtefactError(f"task {task.name!r} has no held-out samples to try the int8 model on")
    model = _export_classifier(artefact, task)
    calibration = first_inputs(task, task.train_data(whole), CALIBRATION_SAMPLES).numpy()
    with exporting(task, "the model", "int8"):
        quantised = _quantise(model, calibration)
    # Tried before they are assembled, which renames the inputs.
    accuracy, float_accuracy = (_accuracy(part, task, held_out) for part in (quantised, model))
    content = _assemble(quantised, artefact, task, is_quantised=True)
    return QuantisedModel(content, accuracy, float_accuracy, samples=len(held_out))


def save_onnx(content: bytes, path: Path) -> None:
    """Write the bytes of an ONNX file; a crash at any time leaves either the old file or the new one."""
    write_atomically(path, content)


def _export_classifier(artefact: Artefact, task: Task) -> Any:
    classifier = build_classifier(artefact, task)
    inputs = example_inputs(task, 2)
    ensure_runs(task, classifier, inputs)
    with exporting(task, "the model", "ONNX"):
        return _export(classifier, inputs, _INPUTS, OUTPUT)


def _export(module: nn.Module, example: Tensor, input_name: str, output_name: str) -> Any:
    """Return a module of one input and one output as an ONNX ModelProto with a dynamic batch."""
    import_onnx("onnxscript")
    program = torch.onnx.export(
        batch_graph(module.eval(), example),
        input_names=[input_name],
        output_names=[output_name],
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # dynamo=True gives one
    return program.model_proto


def _assemble(classifier: Any, artefact: Artefact, task: Task, *, is_quantised: bool = False) -> bytes:
    """Return the file of a classifier, with the task's preprocessing before it and what it is in its metadata."""
    onnx = import_onnx("onnx")
    if preprocesses(task):
        with exporting(task, "the preprocessing", "ONNX"):
            before = _export(Preprocessing(task), example_samples(task, 2), INPUT, _INPUTS)
        before, classifier = (_at_version(part, before, classifier) for part in (before, classifier))
        joined = onnx.compose.merge_models(before, classifier, io_map=[(_INPUTS, _INPUTS)], prefix2="model/")
        _rename(joined, "model/" + OUTPUT, OUTPUT)
        if is_quantised and task.raw_dtype.is_floating_point:
            refuse_overflows(joined, _INPUTS, 1 + len(task.input_shape), OUTPUT)
    else:
        joined = classifier
        _rename(joined, _INPUTS, INPUT)
    del joined.metadata_props[:]
    info = ModelInfo.of(artefact, task)
    joined.metadata_props.add(key=INFO_KEY, value=info.to_json(format_version=FORMAT_VERSION, torch=torch.__version__))
    joined.producer_name, joined.producer_version = "edgenewton", artefact.software_version
    return seal(joined.SerializeToString())


def _at_version(part: Any, *parts: Any) -> Any:
    part.ir_version = max(other.ir_version for other in parts)
    return part


def _rename(model: Any, old: str, new: str) -> None:
    """Give an input or output of a graph another name."""
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def _quantise(model: Any, calibration: Any) -> Any:
    onnx = import_onnx("onnx")
    quantisation = import_onnx("onnxruntime.quantization")

    class Reader(quantisation.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self._batches = iter(np.array_split(calibration, max(1, len(calibration) // 32)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {_INPUTS: batch}

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, given)
        quantisation.quantize_static(
            given,
            made,
            Reader(),
            quant_format=quantisation.QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
        )
        return onnx.load(made)


def _accuracy(model: Any, task: Task, samples: Samples) -> float:
    runtime = import_onnx("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run([OUTPUT], {_INPUTS: samples.inputs.numpy()})
    return task.correct(torch.from_numpy(probabilities), samples.answers) / len(samples)
