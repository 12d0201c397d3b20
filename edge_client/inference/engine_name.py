"""The engines' names, for whoever chooses one; what they are stands in `engine.py`."""

from typing import Literal, get_args

EngineName = Literal["torch", "export", "onnx", "executorch"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

EXPORTED: dict[str, tuple[EngineName, str]] = {
    ".onnx": ("onnx", "an ONNX model"),
    ".pte": ("executorch", "a model for ExecuTorch"),
}
"""The engine of exported files by their suffix, and what such a file is called."""
