"""The torch optimizer, its options, and what keeps its steps safe."""

from edge_client.optim.newton import NewtonOptimizer
from edge_client.optim.options import Curvature, Refresh, TrustRegion

__all__ = ["Curvature", "NewtonOptimizer", "Refresh", "TrustRegion"]
