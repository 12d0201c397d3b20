"""`edge-client export`: a model for recognition, as an artefact, in ONNX or for ExecuTorch."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from edgenewton.common.command_line import Json
from edgenewton.common.console import err, fail, out, print_json
from edgenewton.common.extras import needing
from edgenewton.common.files import write_atomically

from edge_client.cli.model_file import check_output, save
from edge_client.cli.recognise import AllowTask
from edge_client.inference.errors import ArtefactError
from edge_client.tasks.errors import TaskError

if TYPE_CHECKING:
    from edge_client.inference import Artefact
    from edge_client.inference.onnx_export import QuantisedModel
    from edge_client.tasks import Task


class Format(StrEnum):
    """What can be exported."""

    ARTEFACT = "artefact"
    ONNX = "onnx"
    EXECUTORCH = "executorch"


_NAMES = {Format.ARTEFACT: "model.pt", Format.ONNX: "model.onnx", Format.EXECUTORCH: "model.pte"}


def export(
    source: Annotated[
        Path, typer.Argument(help="A model (.pt), or a checkpoint that the ServerApp wrote (round-N.safetensors).")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write the model; model.pt, model.onnx or model.pte unless given."),
    ] = None,
    kind: Annotated[
        Format,
        typer.Option(
            "--format",
            help="An artefact of EdgeNewton, ONNX (extra edgenewton[onnx]) or ExecuTorch (edgenewton[executorch]).",
        ),
    ] = Format.ARTEFACT,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="With ONNX: quantise to int8 after training, and print both models' accuracy."),
    ] = False,
    allow_task: AllowTask = None,
    as_json: Json = False,
) -> None:
    """Make a model for recognition out of a checkpoint of training, or a file for ONNX or ExecuTorch out of a model."""
    if int8 and kind is not Format.ONNX:
        fail("--int8 goes with --format onnx", code=2)
    output = output or Path(_NAMES[kind])
    check_output(output)
    quantised = None
    allow = allow_task or ()
    with needing("to export a model", "training"):
        from edge_client.inference.artefact import Artefact
        from edge_client.inference.pipeline import build_classifier
        from edge_client.tasks import load_foreign_task
    try:
        is_checkpoint = source.suffix == ".safetensors"
        artefact = Artefact.from_checkpoint(source, allow) if is_checkpoint else Artefact.load(source)
        if is_checkpoint:
            build_classifier(artefact, load_foreign_task(artefact.task, allow))  # it may lack personal layers
        if kind is Format.ONNX:
            quantised = _export_onnx(artefact, load_foreign_task(artefact.task, allow), output, int8)
        elif kind is Format.EXECUTORCH:
            _export_executorch(artefact, load_foreign_task(artefact.task, allow), output)
        else:
            save(artefact, output)
    except (ArtefactError, TaskError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror or error}")
    if as_json:
        told = {"task": artefact.task, "step": artefact.step, "output": output, "bytes": output.stat().st_size}
        print_json(told | (_figures(quantised) if quantised is not None else {}))
        return
    if quantised is not None:
        out.print(
            f"accuracy on {quantised.samples} held-out samples: {quantised.accuracy:.1%} in int8, "
            f"{quantised.float_accuracy:.1%} in float32"
        )
    out.print(f"model of task {artefact.task!r} after {artefact.step} steps saved as {output}")


def _figures(quantised: "QuantisedModel") -> dict[str, object]:
    return {
        "samples": quantised.samples,
        "int8_accuracy": quantised.accuracy,
        "float32_accuracy": quantised.float_accuracy,
    }


def _export_onnx(artefact: "Artefact", task: "Task", output: Path, int8: bool) -> "QuantisedModel | None":
    from edge_client.inference.onnx_export import save_onnx, to_int8_onnx, to_onnx

    with err.status("exporting"):
        quantised = to_int8_onnx(artefact, task) if int8 else None
        content = quantised.content if quantised is not None else to_onnx(artefact, task)
    save_onnx(content, output)
    return quantised


def _export_executorch(artefact: "Artefact", task: "Task", output: Path) -> None:
    from edge_client.inference.executorch_export import to_executorch

    with err.status("exporting"):
        content = to_executorch(artefact, task)
    write_atomically(output, content)
