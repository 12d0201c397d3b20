"""Works in the process of Flower's ClientApp, on a device without a daemon."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edgenewton.common.evaluation import Evaluation
from edgenewton.common.tls import TlsFiles
from flwr.app import ConfigRecord, RecordDict

from edge_client.exchange import ExchangeError
from edge_client.tasks import TaskError
from edge_client.training.device_state import DeviceState
from edge_client.training.jobs import (
    DeviceData,
    TrainJob,
    dump_weights,
    evaluate_weights,
    initial_weights,
    read_weights,
    train,
)
from edge_client.training.settings import check_settings
from edge_client.training.work import DataRequest, TrainingReport, TrainRequest, WorkError

_STATE_KEY = "state"


class OwnProcess:
    """Does the work in this process; see `Worker`.

    Args:
        state: what Flower keeps for the node; the optimizer's state travels in it.
        tls: this device's certificate; None for plaintext.

    """

    def __init__(self, state: RecordDict, tls: TlsFiles | None) -> None:
        self._state = state
        self._tls = tls

    def initial_weights(self, settings: Mapping[str, Any]) -> bytes:
        """Return the weights that a run begins with."""
        with _explained():
            return dump_weights(initial_weights(check_settings(settings)))

    def train(self, request: TrainRequest) -> tuple[TrainingReport, bytes]:
        """Train a session's steps; return the report and the weights."""
        kept = self._state.config_records.get(_STATE_KEY)
        with _explained():
            saved = DeviceState.parse(bytes(kept["state"])) if kept is not None else None  # type: ignore[arg-type]
            outcome = train(TrainJob.of(request), saved, tls=self._tls)
        self._state[_STATE_KEY] = ConfigRecord({"state": outcome.state.dump()})
        return outcome.report, dump_weights(outcome.state.model)

    def evaluate(self, data: DataRequest, weights: bytes) -> Evaluation:
        """Try weights on the device's held-out samples."""
        with _explained():
            return evaluate_weights(DeviceData.of(data), read_weights(weights))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (ExchangeError, TaskError, ValueError) as error:
        raise WorkError(str(error)) from None
