"""`edge-client verify`: what a file is, and whether it is whole."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgenewton.common.command_line import Json
from edgenewton.common.extras import needing
from edgenewton.common.verify_command import Files, verify_files

if TYPE_CHECKING:
    from edgenewton.common.file_report import FileReport


def verify(files: Files, as_json: Json = False) -> None:
    """Say what files are and whether they are whole: states, models, data; and those of a coordinator."""
    verify_files(files, as_json=as_json, others=_report_on_model)


def _report_on_model(path: Path, data: bytes) -> "FileReport | None":
    """Return what a model file is that has a digest of its own: of an earlier release, or in ONNX."""
    from edgenewton.common.file_report import FileReport, Verdict

    if path.suffix == ".onnx":
        from edge_client.inference import ArtefactError
        from edge_client.inference.onnx_engine import read_onnx

        try:
            read_onnx(path)
        except ArtefactError as error:
            return FileReport(path, Verdict.DAMAGED, "a model in ONNX", _without_path(error, path))
        return FileReport(path, Verdict.WHOLE, "a model in ONNX")
    if path.suffix == ".pte":
        return FileReport(path, Verdict.DAMAGED, "a model for ExecuTorch", "its digest is not at its end")
    if data.startswith(b"PK"):
        return _report_on_torch_file(path)
    return None


def _report_on_torch_file(path: Path) -> "FileReport | None":
    with needing("to verify a model of an earlier release", "training"):
        import torch
    from edgenewton.common.file_report import FileReport, Verdict

    from edge_client.inference import Artefact, ArtefactError
    from edge_client.inference.artefact import FORMAT as MODEL
    from edge_client.training.checkpoint import FORMAT as STATE

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        kind = content.get("format") if isinstance(content, dict) else None
    except Exception as error:  # damaged bytes make torch's reader fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return FileReport(path, Verdict.DAMAGED, "a file of torch", reason)
    if kind == MODEL:
        try:
            Artefact.load(path)
        except ArtefactError as error:
            return FileReport(path, Verdict.DAMAGED, "a model", _without_path(error, path))
        return FileReport(path, Verdict.WHOLE, "a model")
    return FileReport(path, Verdict.NO_DIGEST, "a device's state") if kind == STATE else None


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path} ").removeprefix("is damaged: ")
