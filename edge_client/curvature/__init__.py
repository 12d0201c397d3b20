"""Curvature: estimators of each layer's inverse Hessian, one per file, behind one interface."""

from edge_client.curvature.estimators.base import Estimator, EstimatorDefaults, EstimatorOptions
from edge_client.curvature.estimators.eva import Eva
from edge_client.curvature.estimators.foof import Foof
from edge_client.curvature.estimators.inputs_and_gradients import InputsAndGradients
from edge_client.curvature.estimators.kfac import Kfac
from edge_client.curvature.estimators.mkor import Mkor
from edge_client.curvature.estimators.soap import Gradients
from edge_client.curvature.linalg import CurvatureError

ESTIMATORS: dict[str, type[Estimator]] = {
    estimator.name: estimator for estimator in (Kfac, Eva, Foof, Mkor, InputsAndGradients, Gradients)
}
"""All estimators, by the name that users choose them by."""

__all__ = ["ESTIMATORS", "CurvatureError", "Estimator", "EstimatorDefaults", "EstimatorOptions"]
