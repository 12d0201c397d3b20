"""Exported files, and which engine runs them; none of it needs PyTorch unless the engine does."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.inference.engine_name import EngineName
from edge_client.inference.model import ModelInfo

if TYPE_CHECKING:
    from edge_client.inference.engine import Engine

    class FileEngine(Engine, Protocol):
        """Runs an exported file, which tells what it recognises."""

        info: ModelInfo


def load_exported(name: EngineName, path: Path, device: str = "cpu", threads: int | None = None) -> "FileEngine":
    """Return the engine of an exported file.

    Args:
        name: of the engine, as `EXPORTED` has it.
        path: the file.
        device: the hardware that the model runs on.
        threads: that it may use; as the engine would have it unless given.

    Raises:
        ArtefactError: the file cannot be used, the engine needs a package that is not installed, or cannot use the
            device.

    """
    if name == "executorch":
        from edge_client.inference.executorch_engine import ExecutorchEngine, read_executorch

        return ExecutorchEngine(read_executorch(path), device, threads)
    from edge_client.inference.onnx_engine import OnnxEngine, read_onnx

    return OnnxEngine(read_onnx(path), device, threads)
