"""The torch optimizer, its options, and what keeps its steps safe."""

from edge_client.optim.newton import NewtonOptimizer
from edge_client.optim.options import Curvature, IterateAverage, Refresh, TrustRegion
from edge_client.optim.schedules import Schedule

__all__ = ["Curvature", "IterateAverage", "NewtonOptimizer", "Refresh", "Schedule", "TrustRegion"]
