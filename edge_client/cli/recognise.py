"""`edge-client predict` and `edge-client tasks`: what a model recognises."""

from pathlib import Path
from typing import Annotated

import typer
from edgenewton.common.command_line import Json
from edgenewton.common.console import fail, out, print_json
from edgenewton.common.extras import needing
from edgenewton.common.tables import Column, Table

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
    as_json: Json = False,
) -> None:
    """Recognise samples: print the label of each file, its probability, and the true label if the file tells it."""
    try:
        recognizer = Recognizer.load(model, engine, device, allow_task or ())
        predictions = recognizer.predict(samples)
        true_labels = [recognizer.true_label(path) for path in samples]
    except (ArtefactError, SampleError, TaskError) as error:
        fail(str(error))
    recognised = list(zip(samples, predictions, true_labels, strict=True))
    if as_json:
        print_json(
            [
                {"file": path, "label": found.label, "probability": found.probability, "true_label": true_label}
                for path, found, true_label in recognised
            ]
        )
        return
    table = Table("file", "label", Column("probability", is_right=True), Column("true label", rank=1))
    for path, found, true_label in recognised:
        table.add(str(path), found.label, f"{found.probability:.1%}", true_label or "")
    out.print(table)


def tasks(
    name: Annotated[str, typer.Argument(help="Name or import path of the task.")] = "digits", as_json: Json = False
) -> None:
    """Show what a task expects and recognises."""
    with needing("to show a task", "training"):
        from edge_client.tasks import load_task
        from edge_client.tasks.task import Task as _  # noqa: F401  # it brings torch
    try:
        task = load_task(name)
    except TaskError as error:
        fail(str(error))
    if as_json:
        print_json({"task": task.name, "input_shape": task.input_shape, "labels": task.labels})
        return
    out.print(f"{task.name}: input {' x '.join(map(str, task.input_shape))}; labels {', '.join(task.labels)}")
