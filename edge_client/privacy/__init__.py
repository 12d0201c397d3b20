"""Differential privacy: what a device tells of its data is clipped, noised, and counted against a budget."""

from edge_client.privacy.budget import PrivacyBudget, PrivacyBudgetError, Unit
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.mechanism import ClippedNoise
from edge_client.privacy.sample_gradients import SampleGradients

__all__ = ["ClippedNoise", "PrivacyBudget", "PrivacyBudgetError", "PrivacyLedger", "SampleGradients", "Unit"]
