"""On-device recognition: the artefact of a trained model, and the recognizer that uses it."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_client.inference.artefact import Artefact
    from edge_client.inference.errors import ArtefactError
    from edge_client.inference.model import ModelInfo
    from edge_client.inference.recognizer import Prediction, Recognizer

__all__ = ["Artefact", "ArtefactError", "ModelInfo", "Prediction", "Recognizer"]

_MODULES = {
    "Artefact": "artefact",
    "ArtefactError": "errors",
    "ModelInfo": "model",
    "Prediction": "recognizer",
    "Recognizer": "recognizer",
}


def __getattr__(name: str) -> object:
    # Imported when asked for: a command that only reads a configuration waits for no PyTorch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
