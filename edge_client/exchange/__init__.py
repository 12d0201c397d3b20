"""The exchange: what synchronises a device's tensors with those of other devices. `remote` has the one over gRPC."""

from edgenewton.common.evaluation import Evaluation

from edge_client.exchange.errors import Cause, ExchangeError, NonFiniteGradientError
from edge_client.exchange.in_process import InProcessExchange
from edge_client.exchange.interface import (
    Contributions,
    Exchange,
    FormedMembership,
    Membership,
    QuorumMembership,
    Replica,
    StepResult,
    TensorKey,
    Traffic,
)

__all__ = [
    "Cause",
    "Contributions",
    "Evaluation",
    "Exchange",
    "ExchangeError",
    "FormedMembership",
    "InProcessExchange",
    "Membership",
    "NonFiniteGradientError",
    "QuorumMembership",
    "Replica",
    "StepResult",
    "TensorKey",
    "Traffic",
]
