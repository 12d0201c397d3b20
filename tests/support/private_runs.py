"""A small model, and a budget for three devices, for tests of training under a privacy budget."""

from seeding import seeded
from torch import nn

from edge_client import PrivacyBudget


def budget_of(**options):
    return PrivacyBudget(**{"epsilon": 8.0, "delta": 1e-5, "clip_norm": 0.5, "devices": 3, "exchanges": 3, **options})


def model_of(*layers):
    with seeded(0):
        return nn.Sequential(nn.Linear(6, 40), *layers, nn.Tanh(), nn.Linear(40, 3))
