"""The torch optimizer, its options, and what keeps its steps safe."""

from edge_client.optim.newton import NewtonOptimizer
from edge_client.optim.options import Curvature, IterateAverage, Refresh, TrustRegion

__all__ = ["Curvature", "IterateAverage", "NewtonOptimizer", "Refresh", "TrustRegion"]
