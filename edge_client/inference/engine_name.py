"""The engines' names, for whoever chooses one; what they are stands in `engine.py`."""

from typing import Literal, get_args

EngineName = Literal["torch", "export", "onnx"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
