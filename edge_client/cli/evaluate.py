"""`edge-client evaluate`: how well a model recognises."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from edgenewton.common.command_line import Json
from edgenewton.common.console import err, fail, out, print_json
from edgenewton.common.extras import needing
from edgenewton.common.tables import Column, Table

from edge_client.cli.recognise import AllowTask, Device, Engine, Model
from edge_client.inference import ArtefactError, Recognizer
from edge_client.inference.engine_name import EXPORTED
from edge_client.inference.evaluation import Confusion, confusion_of, evaluate_files, save_confusion
from edge_client.inference.recognizer import ensure_finite
from edge_client.tasks.errors import SampleError, TaskError
from edge_client.tasks.labelled_files import files_by_label

_BATCH = 256
"""Samples that the model recognises at once."""


def evaluate(
    model: Model,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Files in one folder per label, FOLDER/LABEL/FILE; the task's held-out samples unless given."
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--confusion", help="Where to draw the confusion matrix (.png, .svg, .pdf).")
    ] = None,
    engine: Engine = None,
    device: Device = "cpu",
    allow_task: AllowTask = None,
    as_json: Json = False,
) -> None:
    """Try a model on samples whose labels are known: print its accuracy, overall and by label."""
    allow = allow_task or ()
    try:
        with err.status("recognising"):
            if folder is not None:
                confusion = evaluate_files(Recognizer.load(model, engine, device, allow), files_by_label(folder))
            else:
                confusion = _evaluate_held_out(model, engine, device, allow)
        if picture is not None:
            save_confusion(confusion, picture, model.name)
    except (ArtefactError, SampleError, TaskError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{picture} cannot be written: {error.strerror or error}")
    if as_json:
        print_json(_figures(confusion))
    else:
        out.print(_table(confusion))
        out.print(f"accuracy {confusion.accuracy:.1%} on {confusion.samples} samples")
    if picture is not None:
        (err if as_json else out).print(f"confusion matrix drawn as {picture}")


def _figures(confusion: Confusion) -> dict[str, Any]:
    return {
        "accuracy": confusion.accuracy,
        "samples": confusion.samples,
        "labels": confusion.labels,
        "recall": {label: confusion.recall(label) for label in confusion.labels},
        "confusion": confusion.counts.tolist(),
    }


def _table(confusion: Confusion) -> Table:
    table = Table(
        Column("label", is_name=True),
        Column("samples", is_right=True),
        Column("recognised", is_right=True),
        Column("most often taken for", rank=1, is_name=True),
    )
    for row, label in enumerate(confusion.labels):
        recall = confusion.recall(label)
        if recall is not None:
            counts = confusion.counts[row].copy()
            total, counts[row] = int(counts.sum()), 0
            wrong = f"{confusion.labels[int(counts.argmax())]} ({counts.max()})" if counts.any() else ""
            table.add(label, str(total), f"{recall:.1%}", wrong)
    return table


def _evaluate_held_out(model: Path, engine: str | None, device: str, allow: Collection[str]) -> Confusion:
    if model.suffix in EXPORTED or engine not in (None, "torch"):
        fail("the held-out samples are those of training, for the engine torch; give a folder of files", code=2)
    with needing("to try a model on its task's held-out samples", "training"):
        import torch

        from edge_client.devices import choose_device, to_device
        from edge_client.inference.artefact import Artefact
        from edge_client.inference.pipeline import build_classifier
        from edge_client.tasks import Partition, load_foreign_task
        from edge_client.tasks.data import batches_of

    artefact = Artefact.load(model)
    task = load_foreign_task(artefact.task, allow)
    hardware = choose_device(device)
    classifier = build_classifier(artefact, task).to(hardware)
    answers, targets = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    with torch.inference_mode():
        for batch in batches_of(task, task.test_data(Partition()), _BATCH, what="held-out data"):
            probabilities = classifier(to_device(batch.inputs, hardware)).cpu()
            ensure_finite(probabilities.numpy())
            answers.append(probabilities.argmax(dim=1))
            targets.append(batch.answers)
    if len(answers) == 1:
        fail(f"task {task.name!r} has no held-out samples; give a folder of files")
    return confusion_of(artefact.labels, torch.cat(targets).numpy(), torch.cat(answers).numpy())
