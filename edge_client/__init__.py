"""The edge client: trains a model on a device together with other devices, and recognises with it."""

import importlib
from typing import TYPE_CHECKING

from edgenewton.common.extras import needing

if TYPE_CHECKING:
    from edge_client.curvature.measured_inputs import MeasuredInputs
    from edge_client.curvature.probe import Probe
    from edge_client.exchange.remote import GradientExchange, TlsFiles
    from edge_client.inference import Recognizer
    from edge_client.optim import Curvature, IterateAverage, NewtonOptimizer, Refresh, Schedule, TrustRegion
    from edge_client.privacy import PrivacyBudget, SampleGradients
    from edge_client.sync import (
        EveryBatch,
        LocalCurvature,
        LocalSteps,
        Outer,
        PrivateGradients,
        PrivateLocalSteps,
        ProbeCurvature,
        Probed,
    )

__all__ = [
    "Curvature",
    "EveryBatch",
    "GradientExchange",
    "IterateAverage",
    "LocalCurvature",
    "LocalSteps",
    "MeasuredInputs",
    "NewtonOptimizer",
    "Outer",
    "PrivacyBudget",
    "PrivateGradients",
    "PrivateLocalSteps",
    "Probe",
    "ProbeCurvature",
    "Probed",
    "Recognizer",
    "Refresh",
    "SampleGradients",
    "Schedule",
    "TlsFiles",
    "TrustRegion",
]

_MODULES = {
    "Curvature": "edge_client.optim",
    "EveryBatch": "edge_client.sync",
    "GradientExchange": "edge_client.exchange.remote",
    "IterateAverage": "edge_client.optim",
    "LocalCurvature": "edge_client.sync",
    "LocalSteps": "edge_client.sync",
    "MeasuredInputs": "edge_client.curvature.measured_inputs",
    "NewtonOptimizer": "edge_client.optim",
    "Outer": "edge_client.sync",
    "PrivacyBudget": "edge_client.privacy",
    "SampleGradients": "edge_client.privacy",
    "PrivateGradients": "edge_client.sync",
    "PrivateLocalSteps": "edge_client.sync",
    "Probe": "edge_client.curvature.probe",
    "ProbeCurvature": "edge_client.sync",
    "Probed": "edge_client.sync",
    "Recognizer": "edge_client.inference",
    "Refresh": "edge_client.optim",
    "Schedule": "edge_client.optim",
    "TlsFiles": "edge_client.exchange.remote",
    "TrustRegion": "edge_client.optim",
}


def __getattr__(name: str) -> object:
    # Imported when asked for: an application that only recognises needs neither gRPC nor the optimizer.
    if name == "__version__":
        from edgenewton.common.version import version

        return version()
    if name in _MODULES:
        with needing(f"edge_client.{name}", "training"):
            return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
