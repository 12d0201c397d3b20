"""How a device does what it is asked: the same code in a daemon and in Flower's ClientApp without one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from edgenewton.common.evaluation import Evaluation
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from edge_client.exchange import GradientExchange, TlsFiles
from edge_client.sync.replica import tensors_digest
from edge_client.tasks import Partition, load_task
from edge_client.training.device_state import DeviceState
from edge_client.training.run import Saving, TrainOutcome, Weights, copy_weights, train_in_session
from edge_client.training.settings import TrainSettings, check_settings
from edge_client.training.trainer import build_model, evaluate
from edge_client.training.work import DataRequest, TrainedStep, TrainRequest


@dataclass(frozen=True)
class DeviceData:
    """A `DataRequest` whose settings are checked."""

    settings: TrainSettings
    index: int
    count: int

    @classmethod
    def of(cls, request: DataRequest) -> Self:
        """Return the data that are asked for.

        Raises:
            SettingsError: a setting is unknown or impossible.

        """
        return cls(check_settings(request.settings), request.index, request.count)

    @property
    def request(self) -> DataRequest:
        """What asks for these data."""
        # None stands for what suits the estimator, which is what a setting that is not named stands for, too.
        return DataRequest(self.settings.model_dump(mode="json", exclude_none=True), self.index, self.count)

    @property
    def partition(self) -> Partition:
        """The part of the data that is this device's."""
        settings = self.settings
        return Partition(self.index, self.count, settings.partition, settings.alpha, settings.seed)


@dataclass(frozen=True)
class TrainJob:
    """A `TrainRequest` whose settings are checked and whose weights are read."""

    data: DeviceData
    coordinator: str
    session: str
    device: str
    first_step: int
    steps: int
    weights: Weights

    @classmethod
    def of(cls, request: TrainRequest, data: DeviceData | None = None) -> Self:
        """Return the job that is asked for, with the data that are asked for or with others.

        Raises:
            ValueError: a setting is unknown or impossible, or the weights cannot be read.

        """
        return cls(
            data=data or DeviceData.of(request.data),
            coordinator=request.coordinator,
            session=request.session,
            device=request.device,
            first_step=request.first_step,
            steps=request.steps,
            weights=read_weights(request.weights),
        )

    @property
    def request(self) -> TrainRequest:
        """What asks for this job."""
        return TrainRequest(
            data=self.data.request,
            coordinator=self.coordinator,
            session=self.session,
            device=self.device,
            first_step=self.first_step,
            steps=self.steps,
            weights=dump_weights(self.weights),
        )

    @property
    def settings_text(self) -> str:
        """What a state must have been trained with, to be gone on from."""
        fixed = self.data.settings.model_dump(mode="json", exclude={"steps", "evaluate_every", "threads"})
        return json.dumps([fixed, self.data.index, self.data.count])

    def beginning(self, saved: DeviceState | None) -> tuple[Weights, dict[str, Any] | None]:
        """Return the weights and the optimizer's state to begin with.

        A saved state of this session is gone on from: the device was started again in the middle of it. One of an
        earlier session gives the optimizer's state if it belongs to the job's weights.
        """
        if saved is not None and saved.settings == self.settings_text:
            if saved.session == self.session:
                return saved.model, saved.optimizer
            if saved.step == self.first_step and tensors_digest(saved.model) == tensors_digest(self.weights):
                return self.weights, saved.optimizer
        return self.weights, None


def train(
    job: TrainJob,
    saved: DeviceState | None,
    on_step: Callable[[TrainedStep], None] | None = None,
    *,
    tls: TlsFiles | None = None,
    saving: Saving | None = None,
) -> TrainOutcome:
    """Train a job's steps in step with the other devices.

    Args:
        job: what to train.
        saved: what this device knew last, after another job or in the middle of this one.
        on_step: told of each step.
        tls: this device's certificate; None for plaintext.
        saving: who keeps the state.

    Raises:
        ExchangeError: the coordinator is down, refuses this device, or the session failed.
        TaskError: the task cannot be loaded.
        ValueError: settings, weights or state do not fit, or the certificate cannot be used.

    """
    weights, state = job.beginning(saved)
    return train_in_session(
        job.session,
        job.data.settings,
        job.data.index,
        job.data.count,
        until_step=job.first_step + job.steps,
        connect=lambda: GradientExchange.join(
            job.coordinator, session=job.session, device=device_id(job, tls), tls=tls
        ),
        weights=weights,
        state=state,
        origin=job.settings_text,
        on_step=on_step,
        saving=saving,
    )


def device_id(job: TrainJob, tls: TlsFiles | None) -> str:
    """Return a device's id in a job's session.

    Raises:
        TlsError: the certificate that names it cannot be used.

    """
    if job.device:
        return job.device
    return f"device-{job.data.index}" if tls is None else tls.read().identity.name


def evaluate_weights(data: DeviceData, weights: Weights) -> Evaluation:
    """Try weights on a device's held-out samples.

    Raises:
        TaskError: the task cannot be loaded.
        ValueError: the weights do not fit.

    """
    task = load_task(data.settings.task)
    return evaluate(build_model(task, data.settings.seed, weights), task, task.test_data(data.partition))


def initial_weights(settings: TrainSettings) -> Weights:
    """Return the weights that a run begins with.

    Raises:
        TaskError: the task cannot be loaded.

    """
    return copy_weights(build_model(load_task(settings.task), settings.seed))


def dump_weights(weights: Weights) -> bytes:
    """Return weights in the format of safetensors."""
    return dump_tensors(weights)


def read_weights(content: bytes) -> Weights:
    """Return the weights that `dump_weights` gave.

    Raises:
        ValueError: the content is something else.

    """
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"the weights cannot be read: {error}") from None
