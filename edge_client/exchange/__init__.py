"""Exchanges: what synchronises a device's tensors with those of the other devices."""

from edgenewton.tls import TlsFiles

from edge_client.evaluation import Evaluation
from edge_client.exchange.errors import Cause, ExchangeError, NonFiniteGradientError
from edge_client.exchange.grpc_exchange import GradientExchange
from edge_client.exchange.in_process import InProcessExchange
from edge_client.exchange.interface import Exchange, Replica, StepResult, TensorKey, Traffic

__all__ = [
    "Cause",
    "Evaluation",
    "Exchange",
    "ExchangeError",
    "GradientExchange",
    "InProcessExchange",
    "NonFiniteGradientError",
    "Replica",
    "StepResult",
    "TensorKey",
    "TlsFiles",
    "Traffic",
]
