"""Exports models to ExecuTorch: preprocessing, model and softmax in one program for one sample, in float32.

Layers run in XNNPACK where it has them, and else in ExecuTorch's own kernels.
"""

from typing import Any

import torch
from edgenewton.common.sealed_file import Kind, seal_behind
from torch import nn
from torch.export import ExportedProgram

from edge_client.inference.artefact import Artefact
from edge_client.inference.executorch_engine import FORMAT_VERSION, FORWARD, INFO, RUNTIME, import_executorch
from edge_client.inference.exporting import ensure_runs, example_inputs, example_samples, exporting
from edge_client.inference.model import ModelInfo
from edge_client.inference.pipeline import Preprocessing, build_classifier, preprocesses
from edge_client.tasks import Task


def to_executorch(artefact: Artefact, task: Task) -> bytes:
    """Return an artefact as the bytes of a sealed ExecuTorch program (.pte).

    Raises:
        ArtefactError: the artefact does not fit its task, its model cannot be exported, or the extra `executorch` is
            not installed.

    """
    classifier = build_classifier(artefact, task)
    ensure_runs(task, classifier, example_inputs(task, 1))
    parts = [Preprocessing(task), classifier] if preprocesses(task) else [classifier]
    with exporting(task, "the model", "ExecuTorch"):
        exir = import_executorch("executorch.exir")
        xnnpack = import_executorch("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        example = (example_samples(task, 1),)
        with torch.no_grad():
            program = torch.export.export(nn.Sequential(*parts).eval(), example)
            # Whole numbers are bounded: of a sample that is not finite there can be no question.
            if task.raw_dtype.is_floating_point and _keep_overflows(program):
                program = torch.export.export(program.module(), example)
        lowered = exir.to_edge_transform_and_lower(
            {FORWARD: program},
            partitioner=[xnnpack.XnnpackPartitioner()],
            constant_methods={
                INFO: ModelInfo.of(artefact, task).to_json(format_version=FORMAT_VERSION, torch=torch.__version__)
            },
        )
        made = lowered.to_executorch()
        _ensure_kernels(made)
        content = made.buffer
    return seal_behind(content, Kind.EXECUTORCH_MODEL)


def _ensure_kernels(made: Any) -> None:
    """Check that the runtime has what a program calls, which its exporter does not."""
    known = set(import_executorch(RUNTIME)._get_operator_names())
    called = [operator for plan in made.executorch_program.execution_plan for operator in plan.operators]
    names = {f"{operator.name}.{operator.overload}".rstrip(".") for operator in called}
    if missing := sorted(names - known):
        raise ValueError(f"the runtime has no kernel for {', '.join(missing)}")


def _keep_overflows(program: ExportedProgram) -> bool:
    """Change a graph so that a maximum is NaN where an operand is not finite; return whether it has one.

    XNNPACK passes over NaN in a maximum over height and width. To each the mean of x - x is added, which is 0 of finite
    numbers.
    """
    graph, aten = program.graph, torch.ops.aten
    maxima = [node for node in graph.nodes if node.target is aten.max_pool2d.default]
    for node in maxima:
        with graph.inserting_after(node):
            operand = node.args[0]
            zero = graph.call_function(aten.sub.Tensor, (operand, operand))
        with graph.inserting_after(zero):
            mean = graph.call_function(aten.mean.dim, (zero, [-2, -1], True))
        with graph.inserting_after(mean):
            kept = graph.call_function(aten.add.Tensor, (node, mean))
        node.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)
    return bool(maxima)
