"""The edge client: trains a model on a device together with other devices, and recognises with it."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_client.exchange import GradientExchange, TlsFiles
    from edge_client.inference import Recognizer
    from edge_client.optim.newton import NewtonOptimizer

__all__ = ["GradientExchange", "NewtonOptimizer", "Recognizer", "TlsFiles"]

_MODULES = {
    "GradientExchange": "edge_client.exchange",
    "NewtonOptimizer": "edge_client.optim.newton",
    "Recognizer": "edge_client.inference",
    "TlsFiles": "edge_client.exchange",
}


def __getattr__(name: str) -> object:
    # Imported when asked for: an application that only recognises needs neither gRPC nor the optimizer.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
