"""The ServerApp's part of a Flower run's config; the rest belongs to the devices and is passed on to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from coordinator.settings import MAX_DEVICES, CodecName, Seconds, SecondsOrZero, SessionSettings


class RunConfigError(ValueError):
    """The run's config has an impossible value; the text names it."""


class RunConfig(BaseModel):
    """How a Flower run is organised."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    """What the devices train; written into checkpoints."""
    devices: Annotated[int, Field(ge=1, le=MAX_DEVICES)]
    """Devices that a round waits for; in the simulation engine all must be able to run at once."""
    quorum: Annotated[int, Field(ge=0, le=MAX_DEVICES)] = 0
    """A round begins with so many of them once its deadlines have passed, and goes on while so many are left; 0 for
    all."""
    fraction_train: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of the connected devices that trains in a round; with 1 those that come in the middle of it join it."""
    fraction_evaluate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Part of the connected devices that evaluates the model after a round; 0 for none."""
    steps: Annotated[int, Field(ge=1)]
    """Batches that each device trains in the whole run."""
    rounds: Annotated[int, Field(ge=1)]
    """Flower rounds that the steps are divided over; each ends with an evaluation and a checkpoint."""
    output: Annotated[Path, AfterValidator(Path.absolute)] = Field(Path("runs/flower"), validate_default=True)
    """Folder for checkpoints and the history; a relative one begins where the SuperLink was started."""
    resume: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = None
    """Checkpoint of an earlier run (`round-N.safetensors`), on the machine of the SuperLink, that this run goes on
    from with round N+1; empty to begin anew."""
    codec: CodecName = "fp32"
    """How tensors are written on the wire."""
    coordinator: Annotated[str, Field(pattern=r"^$|^\S+:\d+$")] = ""
    """Address, host:port, of a coordinator that is a process of its own (`edge-coordinator serve --on-demand`), for the
    ServerApp and for all devices; empty to run one inside the ServerApp, for devices on the same machine."""
    step_deadline_s: Seconds = 60.0
    """Seconds that a step may take."""
    join_deadline_s: Seconds = 60.0
    """Seconds for devices to connect before a round, and to join its session, from the first."""
    rejoin_deadline_s: SecondsOrZero = 60.0
    """Seconds that a round without its quorum waits for devices to come back."""
    lease_s: Annotated[float, Field(ge=0.4, le=86_400)] = 20.0
    """Seconds of silence after which a device loses its place in a round."""
    round_deadline_s: Seconds = 3_600.0
    """Seconds that a round's training, or its evaluation, may take."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rounds > self.steps:
            raise ValueError(f"{self.steps} steps cannot be divided over {self.rounds} rounds")
        if self.quorum > self.devices:
            raise ValueError(f"quorum {self.quorum} is more than the run's {self.devices} devices")
        return self

    @property
    def least_devices(self) -> int:
        """How many devices must be connected for a round to begin at the deadline."""
        return self.quorum or self.devices

    def steps_before(self, server_round: int) -> int:
        """Return how many steps come before a round, numbered from 1; rounds differ by at most one step."""
        return self.steps * (server_round - 1) // self.rounds

    def session_settings(self, first_step: int, devices: int) -> SessionSettings:
        """Return the settings of the session of a round that so many devices begin."""
        return SessionSettings(
            devices=devices,
            quorum=min(self.quorum, devices) or None,
            max_devices=MAX_DEVICES,
            codec=self.codec,
            step_deadline_s=self.step_deadline_s,
            join_deadline_s=self.join_deadline_s,
            rejoin_deadline_s=self.rejoin_deadline_s,
            lease_s=self.lease_s,
            heartbeat_s=self.lease_s / 4,
            first_step=first_step,
        )


_OWN = set(RunConfig.model_fields) - {"task", "steps"}


def split_run_config(values: Mapping[str, object]) -> tuple[RunConfig, dict[str, object]]:
    """Return the ServerApp's part of a run's config, and the settings for the devices.

    Raises:
        RunConfigError: a value is impossible; the text names it.

    """
    try:
        config = RunConfig.model_validate({name.replace("-", "_"): value for name, value in values.items()})
    except ValidationError as error:
        problems = [
            f"{'-'.join(map(str, problem['loc'])).replace('_', '-') or 'run config'}: {problem['msg']}"
            + (f" (it is {problem['input']!r})" if problem["loc"] else "")
            for problem in error.errors()
        ]
        raise RunConfigError("; ".join(problems)) from None
    return config, {name: value for name, value in values.items() if name.replace("-", "_") not in _OWN}
