"""Ours: the settings that a device has where nothing is set, for all links and tasks."""

from edgenewton.v1.codecs import CodecChoice
from torch import nn

from edge_client import NewtonOptimizer
from edge_client.curvature.probe import Probe
from edge_client.exchange import Exchange
from edge_client.training.settings import TrainSettings

NAME = "EdgeNewton, default"
"""As it stands in tables. Runs are kept by it, so that another default needs another name."""
CODEC = CodecChoice()


def optimizer(model: nn.Module, exchange: Exchange, probe: Probe) -> NewtonOptimizer:
    """Return a device's optimizer."""
    settings = TrainSettings()
    options = settings.optimizer_options(is_alone=False)
    return NewtonOptimizer(model, sync=settings.plan(exchange, 0, lambda _: probe), **options)
