"""Exchanges: what synchronises a device's tensors with those of the other devices."""

from edgenewton.common.evaluation import Evaluation
from edgenewton.common.tls import TlsFiles

from edge_client.exchange.errors import Cause, ExchangeError, NonFiniteGradientError
from edge_client.exchange.in_process import InProcessExchange
from edge_client.exchange.interface import Exchange, Replica, StepResult, TensorKey, Traffic
from edge_client.exchange.remote.membership import GradientExchange

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
