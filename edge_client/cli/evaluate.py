"""`edge-client evaluate`: how well a model recognises."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from edgenewton.common.console import fail, out
from rich.table import Table

from edge_client.cli.recognise import Engine, Model
from edge_client.inference import Artefact, ArtefactError, Recognizer
from edge_client.inference.evaluation import Confusion, confusion_of, evaluate_files, save_confusion
from edge_client.inference.pipeline import build_classifier
from edge_client.inference.recognizer import ensure_finite
from edge_client.tasks import Partition, SampleError, TaskError, load_task
from edge_client.tasks.datasets import files_by_label


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
) -> None:
    """Try a model on samples whose labels are known: print its accuracy, overall and by label."""
    try:
        with out.status("recognising"):
            if folder is not None:
                confusion = evaluate_files(Recognizer.load(model, engine), files_by_label(folder))
            else:
                confusion = _evaluate_held_out(model, engine)
        if picture is not None:
            save_confusion(confusion, picture, model.name)
    except (ArtefactError, SampleError, TaskError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{picture} cannot be written: {error.strerror or error}")
    table = Table("label", "samples", "recognised", "most often taken for")
    for row, label in enumerate(confusion.labels):
        recall = confusion.recall(label)
        if recall is not None:
            counts = confusion.counts[row].copy()
            total, counts[row] = int(counts.sum()), 0
            wrong = f"{confusion.labels[int(counts.argmax())]} ({counts.max()})" if counts.any() else ""
            table.add_row(label, str(total), f"{recall:.1%}", wrong)
    out.print(table)
    out.print(f"accuracy {confusion.accuracy:.1%} on {confusion.samples} samples")
    if picture is not None:
        out.print(f"confusion matrix drawn as {picture}")


def _evaluate_held_out(model: Path, engine: str | None) -> Confusion:
    if model.suffix == ".onnx" or engine not in (None, "torch"):
        fail("the held-out samples are those of training, for the engine torch; give a folder of files", code=2)
    artefact = Artefact.load(model)
    task = load_task(artefact.task)
    classifier = build_classifier(artefact, task)
    samples = task.test_data(Partition())
    with torch.inference_mode():
        probabilities = classifier(samples.inputs)
    ensure_finite(probabilities)
    answers = probabilities.argmax(dim=1).numpy().astype(np.int64)
    return confusion_of(artefact.labels, samples.answers.numpy(), answers)
