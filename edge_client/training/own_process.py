"""Works in this process, on a device without a daemon."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from edgenewton.common.evaluation import Evaluation
from edgenewton.common.tls import TlsFiles

from edge_client.exchange import ExchangeError
from edge_client.tasks import TaskError, check_foreign_task
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.jobs import (
    DeviceData,
    check_evaluation,
    dump_weights,
    evaluate_weights,
    initial_weights,
    read_weights,
    train,
)
from edge_client.training.publishing import Publishing, TrainedModel
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
        allow_tasks: import paths of tasks that a run may name, besides those of this package and of installed entry
            points.
        publishing: who takes the model while it is trained, and at the end.
        require: what a session must give to be joined: see `GradientExchange.connect`.

    """

    def __init__(
        self,
        keeper: StateKeeper,
        tls: TlsFiles | None,
        allow_tasks: Collection[str] = (),
        publishing: Publishing | None = None,
        require: Sequence[str] = (),
    ) -> None:
        self._keeper = keeper
        self._tls = tls
        self._allow_tasks = allow_tasks
        self._publishing = publishing
        self._require = require

    def initial_weights(self, settings: Mapping[str, Any]) -> bytes:
        """Return the weights that a run begins with."""
        with _explained():
            checked = check_settings(settings)
            check_foreign_task(checked.task, self._allow_tasks)
            return dump_weights(initial_weights(checked))

    def train(self, request: TrainRequest) -> tuple[TrainingReport, bytes]:
        """Train a session's steps; return the report and the weights."""
        with _explained():
            data = self._data(request.data)
            outcome = train(
                request, data, self._saved(), tls=self._tls, require=self._require, publishing=self._publishing
            )
            if self._publishing is not None:
                self._publishing.offer(TrainedModel(outcome.trainer, outcome.weights, outcome.state.step))
        self._keeper.save(outcome.state.dump())
        return outcome.report, dump_weights(outcome.common_weights)

    def evaluate(self, data: DataRequest, weights: bytes) -> Evaluation:
        """Try weights on the device's held-out samples."""
        with _explained():
            given = self._data(data)
            check_evaluation(given, self._require)
            return evaluate_weights(given, read_weights(weights), self._saved())

    def _data(self, request: DataRequest) -> DeviceData:
        data = DeviceData.of(request)
        check_foreign_task(data.settings.task, self._allow_tasks)
        return data

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
