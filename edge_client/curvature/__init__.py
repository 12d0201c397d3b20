"""Curvature: estimators of each layer's inverse Hessian, one per file, behind one interface."""

from edge_client.curvature.estimator import Estimator
from edge_client.curvature.eva import Eva
from edge_client.curvature.kfac import Kfac
from edge_client.curvature.linalg import CurvatureError

ESTIMATORS: dict[str, type[Estimator]] = {estimator.name: estimator for estimator in (Kfac, Eva)}
"""All estimators, by the name that users choose them by."""

__all__ = ["ESTIMATORS", "CurvatureError", "Estimator", "Eva", "Kfac"]
