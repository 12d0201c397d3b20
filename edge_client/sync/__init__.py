"""Plans: when devices exchange what, and whose curvature they use."""

from edge_client.sync.every_batch import EveryBatch
from edge_client.sync.local_curvature import LocalCurvature
from edge_client.sync.plan import SyncPlan

__all__ = ["EveryBatch", "LocalCurvature", "SyncPlan"]
