"""`edge-client predict` and `edge-client tasks`: what a model recognises."""

from pathlib import Path
from typing import Annotated

import typer
from edgenewton.common.console import fail, out
from edgenewton.common.extras import needing
from rich.table import Table

from edge_client.daemon.environment import ALLOW_VARIABLE
from edge_client.inference import ArtefactError, Recognizer
from edge_client.inference.engine_name import EngineName
from edge_client.tasks.errors import SampleError, TaskError

Model = Annotated[Path, typer.Argument(help="A trained model (.pt), or an exported one (.onnx, .pte).")]
Engine = Annotated[
    EngineName | None,
    typer.Option(help="What runs the model; torch for .pt, ONNX Runtime for .onnx and ExecuTorch for .pte files."),
]
AllowTask = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-task",
        metavar="MODULE:NAME",
        envvar=ALLOW_VARIABLE,
        help="A task whose code may be run if the model names it, besides those of this package and of installed "
        "packages; may be repeated.",
    ),
]
Device = Annotated[str, typer.Option(help="The hardware that the model runs on: cpu, cuda (or cuda:1), mps, or auto.")]


def predict(
    model: Model,
    samples: Annotated[list[Path], typer.Argument(help="Files to recognise.")],
    engine: Engine = None,
    device: Device = "cpu",
    allow_task: AllowTask = None,
) -> None:
    """Recognise samples: print the label of each file, its probability, and the true label if the file tells it."""
    try:
        recognizer = Recognizer.load(model, engine, device, allow_task or ())
        predictions = recognizer.predict(samples)
        true_labels = [recognizer.true_label(path) or "" for path in samples]
    except (ArtefactError, SampleError, TaskError) as error:
        fail(str(error))
    table = Table("file", "label", "probability", "true label")
    for path, prediction, true_label in zip(samples, predictions, true_labels, strict=True):
        table.add_row(str(path), prediction.label, f"{prediction.probability:.1%}", true_label)
    out.print(table)


def tasks(name: Annotated[str, typer.Argument(help="Name or import path of the task.")] = "digits") -> None:
    """Show what a task expects and recognises."""
    with needing("to show a task", "training"):
        from edge_client.tasks import load_task
        from edge_client.tasks.task import Task as _  # noqa: F401  # it brings torch
    try:
        task = load_task(name)
    except TaskError as error:
        fail(str(error))
    out.print(f"{task.name}: input {' x '.join(map(str, task.input_shape))}; labels {', '.join(task.labels)}")
