"""The edge client: trains a model on a device together with other devices, and recognises with it."""

from edge_client.exchange import GradientExchange
from edge_client.inference import Recognizer
from edge_client.optimizer import NewtonOptimizer

__all__ = ["GradientExchange", "NewtonOptimizer", "Recognizer"]
