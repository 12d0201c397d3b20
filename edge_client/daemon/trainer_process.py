"""The process that trains, beside the daemon: at low priority, with few threads, and with a Python of its own.

The daemon starts it, sends it jobs over an inherited socket, one at a time, and ends one by SIGINT. It writes
its state (weights, momentum, curvature) to disk after each job, and every few steps in between. When the daemon is
gone the socket closes, and it ends.
"""

import logging
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from edgenewton.common.evaluation import Evaluation

from edge_client.daemon.logs import set_up_log
from edge_client.daemon.messages import (
    EvaluateMessage,
    Failed,
    InitialWeightsMessage,
    Job,
    Published,
    Result,
    Start,
    Trained,
)
from edge_client.daemon.priority import lower_priority
from edge_client.exchange import Cause, ExchangeError
from edge_client.exchange.requirements import check_evaluation
from edge_client.inference import Artefact, ArtefactError
from edge_client.tasks import TaskError, check_foreign_task
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.jobs import (
    DeviceData,
    dump_weights,
    evaluate_weights,
    initial_weights,
    read_weights,
    train,
)
from edge_client.training.publishing import Publishing, TrainedModel
from edge_client.training.run import Saving
from edge_client.training.settings import SettingsError, check_settings
from edge_client.training.work import DataRequest, TrainedStep, TrainRequest

log = logging.getLogger(__name__)


class JobRunner:
    """Does the jobs."""

    def __init__(self, start: Start, connection: Connection) -> None:
        self._start = start
        self._connection = connection
        self._state_path = start.state_dir / "trainer.pt"

    def do(self, job: Job) -> Result:
        """Return what a job leads to."""
        try:
            match job:
                case TrainRequest():
                    return self._train(job)
                case EvaluateMessage():
                    check_evaluation(self._start.require)
                    return evaluate_weights(self._data(job.data), read_weights(job.weights), self._load_state())
                case InitialWeightsMessage():
                    settings = check_settings(job.settings)
                    check_foreign_task(settings.task, self._start.allow_tasks)
                    return dump_weights(initial_weights(settings))
        except ExchangeError as error:
            return Failed(str(error), is_abort=error.cause is Cause.ABORTED)
        except (SettingsError, TaskError, ArtefactError, ValueError) as error:
            return Failed(str(error))
        except KeyboardInterrupt:
            return Failed("it was stopped")
        except Exception as error:  # a user's task runs here; the daemon must hear of whatever it raises
            log.exception("a job failed")
            return Failed(f"{type(error).__name__}: {error}")

    def _train(self, request: TrainRequest) -> Trained:
        data = self._data(request.data)
        every = self._start.publish_every_steps
        # Before the first step, if the file may be gone after the last one, for what is published takes its place.
        serving_accuracy = self._accuracy_of(request.serving, data) if every else None

        def publish(model: TrainedModel) -> None:
            path = self._start.state_dir / "published.pt"
            _artefact(model).save(path)
            accuracy = _accuracy(model.trainer.evaluate()) if request.serving is not None else None
            self._connection.send(Published(model.step, path, accuracy, serving_accuracy))

        outcome = train(
            request,
            data,
            self._load_state(),
            self._tell_step,
            tls=self._start.tls,
            require=self._start.require,
            saving=Saving(self._save, self._start.save_every_steps),
            publishing=Publishing(publish, every),
        )
        artefact = _artefact(TrainedModel(outcome.trainer, outcome.weights, outcome.state.step))
        path, trouble = self._start.state_dir / "trained.pt", ""
        try:
            artefact.save(path)
        except OSError as error:  # the run still gets what was trained
            trouble = f"{path} cannot be written: {error.strerror or error}"
        return Trained(
            report=outcome.report,
            weights=dump_weights(outcome.common_weights),
            model=None if trouble else path,
            accuracy=_accuracy(outcome.trainer.evaluate()),
            serving_accuracy=serving_accuracy if every else self._accuracy_of(request.serving, data),
            trouble=trouble,
        )

    def _accuracy_of(self, path: Path | None, data: DeviceData) -> float | None:
        if path is None:
            return None
        serving = Artefact.load(path)
        if serving.task != data.settings.task:
            return None
        return _accuracy(evaluate_weights(data, serving.weights))

    def _tell_step(self, step: TrainedStep) -> None:
        self._connection.send(step)

    def _data(self, request: DataRequest) -> DeviceData:
        data = DeviceData.of(request, max_threads=self._start.threads, device=self._start.device)
        check_foreign_task(data.settings.task, self._start.allow_tasks)
        return data

    def _load_state(self) -> DeviceCheckpoint | None:
        try:
            return DeviceCheckpoint.read(self._state_path)
        except ValueError as error:
            log.warning("the optimizer begins anew: %s", error)
            return None

    def _save(self, state: DeviceCheckpoint) -> None:
        state.save(self._state_path)


def _artefact(model: TrainedModel) -> Artefact:
    task = model.trainer.task
    path = model.trainer.settings.task
    return Artefact(path, tuple(task.labels), tuple(task.input_shape), model.step, model.weights)


def _accuracy(evaluation: Evaluation) -> float | None:
    return evaluation.accuracy if evaluation.samples else None


def _receive(connection: Connection, jobs: "queue.Queue[Job]") -> None:
    while True:
        try:
            jobs.put(connection.recv())
        except (EOFError, OSError):
            break
    # The daemon is gone. What trains is interrupted, tells the coordinator, and is the last thing that happens here.
    os.kill(os.getpid(), signal.SIGINT)
    jobs.put(None)  # type: ignore[arg-type]


def main() -> None:
    """Do jobs until the daemon is gone."""
    connection = Connection(int(sys.argv[1]))
    start: Start = connection.recv()
    lower_priority(start.nice)
    torch.set_num_threads(start.threads)
    set_up_log(start.log)
    runner = JobRunner(start, connection)
    jobs: queue.Queue[Job] = queue.Queue()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    while True:
        try:
            job = jobs.get()
            if job is None:
                return
            connection.send(runner.do(job))
        except KeyboardInterrupt:  # between two jobs, there is nothing to stop
            continue
        except OSError:
            return


if __name__ == "__main__":
    main()
