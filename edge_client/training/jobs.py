"""How a device does what it is asked: the same code in a daemon and in Flower's ClientApp without one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from edgenewton.common.evaluation import Evaluation
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from edge_client.devices import choose_device
from edge_client.exchange.remote import GradientExchange, TlsFiles
from edge_client.exchange.requirements import Requirements
from edge_client.sync.personal import personal_names
from edge_client.tasks import load_task
from edge_client.training.batches import StreamEndedError
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.evaluation import evaluate
from edge_client.training.publishing import Publishing
from edge_client.training.run import Saving, TrainOutcome, Weights, copy_weights, train_in_session
from edge_client.training.settings import SettingsError, TrainSettings, check_settings
from edge_client.training.trainer import build_model, held_out_data, partition_of
from edge_client.training.work import DataRequest, TrainedStep, TrainRequest


@dataclass(frozen=True)
class DeviceData:
    """What a `DataRequest` asks for, with settings that are checked."""

    settings: TrainSettings
    index: int
    count: int

    @classmethod
    def of(cls, request: DataRequest, max_threads: int = 0, device: str = "") -> Self:
        """Return the data that are asked for.

        Args:
            request: asks for them.
            max_threads: to train on them; 0 for any number.
            device: the hardware that trains, whatever the settings say; empty for what they say.

        Raises:
            SettingsError: a setting is unknown or impossible.

        """
        settings = check_settings(request.settings)
        if max_threads:
            threads = min(settings.threads or max_threads, max_threads)
            settings = settings.model_copy(update={"threads": threads})
        if device:
            settings = settings.model_copy(update={"device": device})
        return cls(settings, request.index, request.count)

    @property
    def text(self) -> str:
        """What a state must have been trained with, to be gone on from."""
        fixed = self.settings.model_dump(mode="json", exclude={"steps", "evaluate_every", "threads", "device"})
        return json.dumps([fixed, self.index, self.count])


def train(
    request: TrainRequest,
    data: DeviceData,
    saved: DeviceCheckpoint | None,
    on_step: Callable[[TrainedStep], None] | None = None,
    *,
    tls: TlsFiles | None = None,
    require: Sequence[str] = (),
    saving: Saving | None = None,
    publishing: Publishing | None = None,
) -> TrainOutcome:
    """Train what is asked for, in step with the other devices; a privacy budget that is spent ends it before.

    Args:
        request: what to train.
        data: what its data lead to.
        saved: what this device knew last, after another session or in the middle of this one.
        on_step: told of each step.
        tls: this device's certificate; None for plaintext.
        require: what the session must give: see `GradientExchange.connect`.
        saving: who keeps the state.
        publishing: who takes the model while it is trained.

    Raises:
        ExchangeError: the coordinator is down, refuses this device, or the session failed.
        TaskError: the task cannot be loaded, or its data; or they ended before the session did.
        ValueError: settings, weights or state do not fit, or the certificate cannot be used.

    """
    weights, state = _beginning(request, data, saved)
    outcome = train_in_session(
        request.session,
        data.settings,
        data.index,
        data.count,
        until_step=request.first_step + request.steps,
        connect=lambda: GradientExchange.connect(
            request.coordinator,
            session=request.session,
            device=_device_id(request, tls),
            run_steps=max(data.settings.steps, request.first_step + request.steps),
            tls=tls,
            require=require,
        ),
        weights=weights,
        state=state,
        origin=data.text,
        on_step=on_step,
        saving=saving,
        publishing=publishing,
    )
    if outcome.report.ended and not outcome.report.is_budget_spent:
        raise StreamEndedError(outcome.report.ended)
    return outcome


def _beginning(
    request: TrainRequest, data: DeviceData, saved: DeviceCheckpoint | None
) -> tuple[Weights, dict[str, Any] | None]:
    """Return the weights and the optimizer's state to begin with.

    A saved state of this session is gone on from: the device was started again in the middle of it. One of an
    earlier session is too, from its last iterate, if it gave the weights that are asked for, which are an average. Else
    it gives the personal layers, which are not among these, unless the run begins anew.
    """
    weights = read_weights(request.weights)
    if saved is not None and saved.settings == data.text:
        if saved.session == request.session:
            return saved.model, saved.optimizer
        if saved.step == request.first_step and saved.gives(weights):
            return saved.model, saved.optimizer
        if request.first_step:
            weights = with_personal(data, weights, saved)
    return weights, None


def with_personal(data: DeviceData, weights: Weights, saved: DeviceCheckpoint | None) -> Weights:
    """Return weights with the personal layers of a device's state where they lack them, if it is of the same data."""
    if not data.settings.personal or saved is None or saved.settings != data.text:
        return weights
    names = personal_names(build_model(load_task(data.settings.task), data.settings.seed), data.settings.personal)
    return {name: tensor for name, tensor in saved.averaged.items() if name in names} | weights


def _device_id(request: TrainRequest, tls: TlsFiles | None) -> str:
    """Return this device's id in the session.

    Raises:
        TlsError: the certificate that names it cannot be used.

    """
    if request.device:
        return request.device
    return f"device-{request.data.index}" if tls is None else tls.read().identity.name


def check_evaluation(data: DeviceData, require: Sequence[str] = ()) -> None:
    """Check that whoever asks for it may learn how many of a device's held-out samples a model recognises.

    Args:
        data: on which it is to be tried.
        require: what this device insists on.

    Raises:
        SettingsError: there is a privacy budget, or this device insists on one: it covers what is trained alone. Or it
            insists on masks: nothing masks that.

    """
    requirements = Requirements.parse(require)
    if data.settings.epsilon is not None or requirements.wants_budget:
        raise SettingsError(
            "how many of a device's held-out samples a model recognises is not covered by a privacy budget, and this "
            "device does not tell it: set fraction-evaluate=0"
        )
    if requirements.least is not None:
        raise SettingsError(
            f"this device insists on {requirements.masks}, and its accuracy on its own samples would leave in clear: "
            "run with fraction-evaluate=0; evaluate-every=20 tries the model under masks, every 20 steps"
        )


def evaluate_weights(data: DeviceData, weights: Weights, saved: DeviceCheckpoint | None = None) -> Evaluation:
    """Try weights on a device's held-out samples, with the personal layers of its state, if they lack them.

    Raises:
        TaskError: the task cannot be loaded.
        ValueError: the weights do not fit.

    """
    settings = data.settings
    task = load_task(settings.task)
    held_out = held_out_data(task, partition_of(settings, data.index, data.count))
    model = build_model(task, settings.seed, with_personal(data, weights, saved), settings.personal)
    return evaluate(model.to(choose_device(settings.device)), task, held_out)


def initial_weights(settings: TrainSettings) -> Weights:
    """Return the weights that a run begins with; personal layers begin on each device as the settings' seed gives them.

    Raises:
        TaskError: the task cannot be loaded.
        ValueError: a pattern of the personal layers matches nothing.

    """
    model = build_model(load_task(settings.task), settings.seed)
    personal = personal_names(model, settings.personal)
    return {name: tensor for name, tensor in copy_weights(model).items() if name not in personal}


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
