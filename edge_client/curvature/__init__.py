"""Curvature: estimators of each layer's inverse Hessian, one per file, behind one interface."""

from edge_client.curvature.estimator import Estimator, EstimatorDefaults, EstimatorOptions
from edge_client.curvature.eva import Eva
from edge_client.curvature.foof import Foof
from edge_client.curvature.gradients import Gradients
from edge_client.curvature.inputs_and_gradients import InputsAndGradients
from edge_client.curvature.kfac import Kfac
from edge_client.curvature.linalg import CurvatureError
from edge_client.curvature.mkor import Mkor

ESTIMATORS: dict[str, type[Estimator]] = {
    estimator.name: estimator for estimator in (Kfac, Eva, Foof, Mkor, InputsAndGradients, Gradients)
}
"""All estimators, by the name that users choose them by."""

__all__ = ["ESTIMATORS", "CurvatureError", "Estimator", "EstimatorDefaults", "EstimatorOptions"]
