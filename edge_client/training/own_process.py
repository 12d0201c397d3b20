"""Works in this process, on a device without a daemon."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from edgenewton.common.evaluation import Evaluation
from edgenewton.common.tls import TlsFiles

from edge_client.exchange import ExchangeError
from edge_client.tasks import TaskError
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.jobs import (
    DeviceData,
    dump_weights,
    evaluate_weights,
    initial_weights,
    read_weights,
    train,
)
from edge_client.training.settings import check_settings
from edge_client.training.work import DataRequest, TrainingReport, TrainRequest, WorkError

log = logging.getLogger(__name__)


class StateKeeper(Protocol):
    """Where the device's state outlives this process."""

    def load(self) -> bytes | None:
        """Return what was saved last; None if nothing was."""

    def save(self, state: bytes) -> None:
        """Keep a state, in place of the one before."""


class OwnProcess:
    """Does the work in this process; see `Worker`.

    Args:
        keeper: keeps the optimizer's state from one training to the next.
        tls: this device's certificate; None for plaintext.

    """

    def __init__(self, keeper: StateKeeper, tls: TlsFiles | None) -> None:
        self._keeper = keeper
        self._tls = tls

    def initial_weights(self, settings: Mapping[str, Any]) -> bytes:
        """Return the weights that a run begins with."""
        with _explained():
            return dump_weights(initial_weights(check_settings(settings)))

    def train(self, request: TrainRequest) -> tuple[TrainingReport, bytes]:
        """Train a session's steps; return the report and the weights."""
        with _explained():
            outcome = train(request, DeviceData.of(request.data), self._saved(), tls=self._tls)
        self._keeper.save(outcome.state.dump())
        return outcome.report, dump_weights(outcome.common_weights)

    def evaluate(self, data: DataRequest, weights: bytes) -> Evaluation:
        """Try weights on the device's held-out samples."""
        with _explained():
            return evaluate_weights(DeviceData.of(data), read_weights(weights), self._saved())

    def _saved(self) -> DeviceCheckpoint | None:
        kept = self._keeper.load()
        try:
            return DeviceCheckpoint.parse(kept) if kept is not None else None
        except ValueError as error:
            log.warning("the state that was kept is damaged, and the optimizer begins anew: %s", error)
            return None


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (ExchangeError, TaskError, ValueError) as error:
        raise WorkError(str(error)) from None
