"""Curvature estimators: one per file behind one interface; a new one is one file and one line here."""

from edge_client.curvature.estimators.base import Estimator, EstimatorDefaults, EstimatorOptions, Statistics
from edge_client.curvature.estimators.eva import Eva
from edge_client.curvature.estimators.foof import Foof
from edge_client.curvature.estimators.inputs_and_gradients import InputsAndGradients
from edge_client.curvature.estimators.kfac import Kfac
from edge_client.curvature.estimators.mkor import Mkor
from edge_client.curvature.estimators.soap import Soap

ESTIMATORS: dict[str, type[Estimator]] = {
    estimator.name: estimator for estimator in (Kfac, Eva, Foof, Mkor, InputsAndGradients, Soap)
}
"""All estimators, by the name that users choose them by."""

__all__ = ["ESTIMATORS", "Estimator", "EstimatorDefaults", "EstimatorOptions", "Statistics"]
