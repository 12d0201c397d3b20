"""The daemon: model store, recognition, training, and what people and other programs may ask of it."""

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.v1 import device_pb2 as pb

from edge_client.daemon.config import DaemonConfig
from edge_client.daemon.control import ControlServer
from edge_client.daemon.messages import EvaluateMessage, InitialWeightsMessage, Published, Start, Trained
from edge_client.daemon.metrics import TrainingMetrics
from edge_client.daemon.notify import notify, watchdog_interval_s
from edge_client.daemon.publication import Publication
from edge_client.daemon.service import TrainingResult
from edge_client.daemon.trainer_host import BusyError, SessionAbortedError, TrainerHost
from edge_client.inference import Artefact, ArtefactError, Recognizer
from edge_client.inference.accuracy_gate import AccuracyGate
from edge_client.inference.errors import NotFiniteError, OverloadedError
from edge_client.inference.repository import ModelRepository
from edge_client.inference.server.model_control import LoadingRules
from edge_client.inference.server.servers import Addresses, InferenceServers
from edge_client.inference.server.service import InferenceService, RequestLimits
from edge_client.inference.store import ModelStore, StoreError, Version
from edge_client.tasks import TaskError
from edge_client.training.work import DataRequest, TrainedStep, TrainRequest

log = logging.getLogger(__name__)

_PULSE_DEADLINE_S = 5.0


@dataclass
class TrainingState:
    """What is on, for people."""

    session: str = ""
    """Empty while nothing is trained."""
    step: int = 0
    loss: float = float("nan")
    epsilon: float | None = None
    """What the device's data have cost of its privacy budget, in the training that is on or in the last one."""
    last: str = "none yet"
    """How the last training ended."""


class Daemon:
    """Owns a device's model. Use it on a running event loop.

    Raises:
        StoreError: the model store is in use or cannot be used.
        RepositoryError: the model repository cannot be used.

    """

    def __init__(self, config: DaemonConfig) -> None:
        self.config = config
        self.began_at = time.monotonic()
        self.training = TrainingState()
        self.store = ModelStore(config.state_dir / "models", config.model.keep)
        server = config.server
        self.service = InferenceService(
            config.model.name,
            RequestLimits(
                max_batch=server.max_batch,
                max_waiting=server.max_waiting,
                max_request_bytes=int(server.max_request_mb * 1e6),
                max_memory_bytes=int(server.max_memory_mb * 1e6),
                request_deadline_s=server.request_deadline_s,
                max_connections=server.max_connections,
                max_connections_per_client=server.max_connections_per_client,
            ),
        )
        loading = None
        if server.repository is not None:
            loading = LoadingRules(ModelRepository(server.repository), self._load)
        addresses = Addresses(server.host, server.grpc_port, server.rest_port)
        self.servers = InferenceServers(self.service, addresses, loading)
        self._metrics = TrainingMetrics(self.service.metrics.registry)
        limits = config.training
        start = Start(
            config.state_dir,
            limits.threads,
            limits.nice,
            limits.save_every_steps,
            config.tls_files,
            config.log,
            limits.device or "",
            config.model.allow_tasks,
            limits.publish_every_steps,
            config.require,
        )
        self.trainer = TrainerHost(start, limits.stop_deadline_s)
        self._gate = None if config.model.gate_margin is None else AccuracyGate(config.model.gate_margin)
        self._control = ControlServer(self, config.socket_path)
        self._promotion = asyncio.Lock()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ArtefactError, TaskError: the initial model cannot be used.
            OSError: an address cannot be listened on.

        """
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stopped.set)
        torch.set_num_threads(self.config.server.threads)
        pulse: asyncio.Task[None] | None = None
        try:
            await self._restore()
            await self.servers.start()
            await self._control.start()
            pulse = asyncio.create_task(self._beat())
            server = self.config.server
            log.info(
                "ready: gRPC on %s:%s, REST on %s:%s, socket %s",
                server.host,
                self.servers.grpc_port,
                server.host,
                self.servers.rest_port,
                self.config.socket_path,
            )
            notify("READY=1", "STATUS=serves recognition")
            await self._stopped.wait()
        finally:
            notify("STOPPING=1")
            log.info("stopping")
            if pulse is not None:
                pulse.cancel()
            await self._control.stop()
            await self.trainer.stop()
            await self.servers.stop(self.config.server.drain_deadline_s)
            self.store.close()

    # ------------------------------------------------------------------ the model

    async def promote(self, artefact: Artefact, accuracy: float | None = None) -> Version:
        """Let a model serve, and keep it.

        Raises:
            ArtefactError, TaskError: it cannot recognise; the serving one goes on.
            StoreError: it is of another task, or cannot be written.

        """
        async with self._promotion:
            recognizer = await asyncio.to_thread(self._recognizer, artefact)
            version = await asyncio.to_thread(self.store.promote, artefact, accuracy)
            await self.service.swap(recognizer, version.version)
        await self.servers.set_ready(True)
        return version

    async def promote_bytes(self, content: bytes) -> int:
        """Let the model in a file's content serve; return its version.

        Raises:
            ArtefactError, TaskError, StoreError: as `promote`.

        """

        def read() -> Artefact:
            try:
                with tempfile.NamedTemporaryFile(dir=self.config.state_dir, suffix=".pt") as file:
                    file.write(content)
                    file.flush()
                    try:
                        return Artefact.load(Path(file.name))
                    except ArtefactError as error:
                        raise ArtefactError(str(error).replace(file.name, "the model")) from None
            except OSError as error:
                folder = self.config.state_dir
                raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from None

        return (await self.promote(await asyncio.to_thread(read))).version

    def _load(self, path: Path) -> Recognizer:
        """Return a model of the repository."""
        model = self.config.model
        engine = model.engine if path.suffix == ".pt" else None  # an exported file has an engine of its own
        return Recognizer.load(path, engine, model.device, model.allow_tasks)

    def _recognizer(self, artefact: Artefact) -> Recognizer:
        model = self.config.model
        return Recognizer.of(artefact, model.engine, model.device, model.allow_tasks)

    async def _restore(self) -> None:
        """Serve what served last; a version that cannot be used is set aside for the one before."""
        while self.store.serving is not None:
            try:
                artefact = self.store.load()
                recognizer = await asyncio.to_thread(self._recognizer, artefact)
            except StoreError:
                break
            except ArtefactError as error:
                self.store.reject(str(error))
            else:
                await self.service.swap(recognizer, self.store.serving.version)
                return
        if self.config.model.initial is not None:
            await self.promote(Artefact.load(self.config.model.initial))
        else:
            log.warning("there is no model yet; requests are refused until one was trained or promoted")

    # ------------------------------------------------------------------ training

    async def train(self, request: TrainRequest) -> AsyncGenerator[TrainedStep | TrainingResult, None]:
        """Train some steps in a session, and let the model serve; see `DeviceService`."""
        compared = self.store.serving_path if self._gate is not None else None
        is_busy = is_done = has_failed = False
        publication = Publication(self._gate, self.promote)
        async with aclosing(self.trainer.run(replace(request, serving=compared))) as messages:
            try:
                async for message in messages:
                    if isinstance(message, TrainedStep):
                        self._metrics.observe(message)
                        self.training.session = request.session
                        self.training.step, self.training.loss = message.step, message.session_loss
                        self.training.epsilon = message.epsilon
                        yield message
                    elif isinstance(message, Published):
                        publication.take(message)
                    elif isinstance(message, Trained):
                        await publication.end()
                        is_done = True
                        accuracy = "no held-out samples"
                        if message.accuracy is not None:
                            accuracy = f"accuracy {message.accuracy:.1%}"
                        report = message.report
                        self.training.epsilon = report.epsilon
                        spent = "" if report.epsilon is None else f", epsilon {report.epsilon:.3g}"
                        ended = f", then {report.ended}" if report.ended else ""
                        self.training.last = f"{report.steps} steps, {accuracy}{spent}{ended}"
                        log.info("trained %s", self.training.last)
                        serving = publication.accuracy_of_serving(message.serving_accuracy)
                        refusal = await self._take_trained(message, serving)
                        yield TrainingResult(message.report, message.weights, refusal)
            except BusyError:  # with another training, which goes on
                is_busy = True
                raise
            except SessionAbortedError as error:
                has_failed = True
                self.training.last = f"ended early: {error}"
                log.info("training %s", self.training.last)
                raise
            except BaseException as error:
                has_failed = not is_done  # whoever has the result may hang up
                if has_failed:
                    self.training.last = f"failed: {str(error) or 'it was stopped'}"
                    log.warning("training %s", self.training.last)
                raise
            finally:
                await publication.end()
                if not is_busy:
                    self.training.session = ""
                    self._metrics.end(has_failed=has_failed)

    async def evaluate(self, data: DataRequest, weights: bytes) -> Evaluation:
        """Try weights on the device's held-out samples; see `DeviceService`."""
        return await self.trainer.result(EvaluateMessage(data, weights), Evaluation)

    async def initial_weights(self, settings: Mapping[str, Any]) -> bytes:
        """Return the weights that a run begins with; see `DeviceService`."""
        return await self.trainer.result(InitialWeightsMessage(settings), bytes)

    async def _take_trained(self, trained: Trained, serving_accuracy: float | None) -> str:
        """Let a trained model serve if the gate lets it; return why it does not, or an empty text."""
        if trained.model is None:
            log.error("the trained model does not serve: %s", trained.trouble)
            return trained.trouble
        if self._gate is not None:
            refusal = self._gate.refusal(trained.accuracy, serving_accuracy)
            if refusal is not None:
                log.warning("the trained model does not serve: %s", refusal)
                return refusal
        try:
            artefact = await asyncio.to_thread(Artefact.load, trained.model)
            await self.promote(artefact, trained.accuracy)
        except (ArtefactError, TaskError, StoreError) as error:
            log.warning("the trained model does not serve: %s", error)
            return str(error)
        return ""

    # ------------------------------------------------------------------ signs of life

    def status(self) -> pb.StatusReply:
        """Return what the daemon does."""
        config, training = self.config, self.training
        return pb.StatusReply(
            software=metadata.version("edgenewton"),
            pid=os.getpid(),
            uptime_s=time.monotonic() - self.began_at,
            grpc_address=f"{config.server.host}:{self.servers.grpc_port}",
            rest_address=f"{config.server.host}:{self.servers.rest_port}",
            model=self._model_status(),
            training=pb.TrainingStatus(
                is_training=bool(training.session),
                session=training.session,
                step=training.step,
                loss=training.loss,
                last=training.last,
                epsilon=training.epsilon,
            ),
            waiting_samples=len(self.service.batcher.queue),
        )

    def _model_status(self) -> pb.ModelStatus:
        config, store = self.config.model, self.store
        model = pb.ModelStatus(name=config.name, engine=config.engine, versions=store.versions())
        serving = self.service.batcher.serving
        if serving is not None:
            info = serving.recognizer.info
            model.version, model.task, model.step, model.digest = serving.version, info.task, info.step, info.digest
            if store.serving is not None and store.serving.accuracy is not None:
                model.accuracy = store.serving.accuracy
        return model

    async def _beat(self) -> None:
        """Tell systemd's watchdog that requests are answered, as long as they are."""
        interval_s = watchdog_interval_s()
        while interval_s is not None:
            if await self._is_alive():
                notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    async def _is_alive(self) -> bool:
        serving = self.service.batcher.serving
        if serving is None:
            return True
        info = serving.recognizer.info
        sample = info.blank(1)
        try:
            await self.service.batcher.submit(sample, 1, _PULSE_DEADLINE_S)
        except (OverloadedError, NotFiniteError):  # the model did answer, though it makes nothing of zeros
            return True
        except Exception:
            log.exception("the model does not answer")
            return False
        return True


async def run_daemon(config: DaemonConfig) -> None:
    """Run the daemon of a configuration until it is told to stop.

    Raises:
        ArtefactError, RepositoryError, StoreError, TaskError, OSError: it cannot start; the text says why.

    """
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    daemon = Daemon(config)
    with contextlib.closing(daemon.store):
        await daemon.run()
