"""Keeps a Flower run's steps in its output folder: a record for `edge-coordinator report`, and TensorBoard's files."""

import logging
import threading
from pathlib import Path

import grpc
from edgenewton.common.tls import TlsFiles
from edgenewton.v1 import exchange_pb2 as pb

from coordinator.session.decisions import Phase
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.history import StepRecord
from coordinator.telemetry.record import Record
from coordinator.telemetry.run_files import RECORD_NAME
from coordinator.telemetry.statistics import SessionStatistics
from coordinator.telemetry.tensorboard import EventFiles, TensorBoardError
from coordinator.telemetry.watch import follow

log = logging.getLogger(__name__)

TENSORBOARD_NAME = "tensorboard"
_SESSION = "run"
_END_DEADLINE_S = 5.0


class RunObserver:
    """Follows the sessions of a run, one after the other, each in a thread. What goes wrong here fails no run.

    Args:
        folder: the run's output.
        tls: certificate to show to the coordinator; None for plaintext.

    Raises:
        RecordError: the record cannot be written.

    """

    def __init__(self, folder: Path, tls: TlsFiles | None = None) -> None:
        self._tls = tls
        self._record = Record(folder / RECORD_NAME)
        self._statistics: SessionStatistics | None = None
        self._files: EventFiles | None = None
        self._thread: threading.Thread | None = None
        try:
            self._files = EventFiles(folder / TENSORBOARD_NAME)
        except TensorBoardError as error:
            log.info("%s", error)

    def observe(self, address: str, session: str, settings: SessionSettings) -> None:
        """Follow a session of the coordinator at an address until it is over."""
        self._wait()
        if self._statistics is None:
            if settings.first_step == 0 or not self._record.sessions():
                self._record.begin_session(_SESSION, settings)
            self._statistics = self._record.statistics(_SESSION)
        arguments = (address, session, self._statistics)
        self._thread = threading.Thread(target=self._follow, args=arguments, name="observer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        self._wait()
        try:
            if self._files is not None:
                self._files.close()
        except OSError as error:
            self._give_up_files(error)
        self._record.close()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join(_END_DEADLINE_S)

    def _follow(self, address: str, session: str, statistics: SessionStatistics) -> None:
        try:
            for event in follow(address, session, self._tls):
                statistics.apply(event)
                if event.WhichOneof("event") == "step":
                    self._record.set_committed(_SESSION, StepRecord.of(event.step, event.time_s, statistics))
                    self._write_files(event, statistics)
            self._record.set_phase(_SESSION, Phase(statistics.phase), statistics.reason)
            self._record.set_statistics(statistics)
        except grpc.RpcError as error:
            log.warning("session %r is not followed any more: %s", session, error)
        except Exception:
            log.exception("session %r is not recorded any more", session)

    def _write_files(self, event: pb.SessionEvent, statistics: SessionStatistics) -> None:
        try:
            if self._files is not None:
                self._files.write(event, statistics)
        except OSError as error:
            self._give_up_files(error)

    def _give_up_files(self, error: OSError) -> None:
        log.error("no more event files are written: %s", error)
        self._files = None
