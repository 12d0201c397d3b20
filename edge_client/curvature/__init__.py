"""Curvature: each layer's inverse Hessian, from its inputs and gradients. Pure maths, without any transport."""

from edge_client.curvature.estimators import ESTIMATORS, Estimator, EstimatorDefaults, EstimatorOptions
from edge_client.curvature.linalg import CurvatureError

__all__ = ["ESTIMATORS", "CurvatureError", "Estimator", "EstimatorDefaults", "EstimatorOptions"]
