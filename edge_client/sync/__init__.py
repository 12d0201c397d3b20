"""Plans: when devices exchange what, and whose curvature they use."""

from edge_client.sync.every_batch import EveryBatch
from edge_client.sync.local_curvature import LocalCurvature
from edge_client.sync.local_steps import LocalSteps
from edge_client.sync.outer import Outer
from edge_client.sync.plan import SyncPlan
from edge_client.sync.private_gradients import PrivateGradients
from edge_client.sync.private_steps import PrivateLocalSteps
from edge_client.sync.probe_curvature import ProbeCurvature
from edge_client.sync.probed import Probed
from edge_client.sync.scope import CurvatureScope, Own
from edge_client.sync.shared_rounds import Shared

__all__ = [
    "CurvatureScope",
    "EveryBatch",
    "LocalCurvature",
    "LocalSteps",
    "Outer",
    "Own",
    "PrivateGradients",
    "PrivateLocalSteps",
    "ProbeCurvature",
    "Probed",
    "Shared",
    "SyncPlan",
]
