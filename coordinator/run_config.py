"""The ServerApp's part of a Flower run's config; the rest belongs to the devices and is passed on to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from coordinator.settings import CodecName, Seconds, SessionSettings


class RunConfigError(ValueError):
    """The run's config has an impossible value; the text names it."""


class RunConfig(BaseModel):
    """How a Flower run is organised."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    """What the devices train; written into checkpoints."""
    devices: Annotated[int, Field(ge=1, le=10_000)]
    """Devices that train together; all must be able to run at once."""
    steps: Annotated[int, Field(ge=1)]
    """Batches that each device trains in the whole run."""
    rounds: Annotated[int, Field(ge=1)]
    """Flower rounds that the steps are divided over; each ends with an evaluation and a checkpoint."""
    output: Annotated[Path, AfterValidator(Path.absolute)] = Field(Path("runs/flower"), validate_default=True)
    """Folder for checkpoints and the history; a relative one begins where the SuperLink was started."""
    codec: CodecName = "fp32"
    """How tensors are written on the wire."""
    coordinator: Annotated[str, Field(pattern=r"^$|^\S+:\d+$")] = ""
    """Address, host:port, of a coordinator that is a process of its own (`edge-coordinator serve --on-demand`), for the
    ServerApp and for all devices; empty to run one inside the ServerApp, for devices on the same machine."""
    step_deadline_s: Seconds = 60.0
    """Seconds that a step may take."""
    join_deadline_s: Seconds = 60.0
    """Seconds for all devices to join a round, from the first."""
    round_deadline_s: Seconds = 3_600.0
    """Seconds that a round's training, or its evaluation, may take."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rounds > self.steps:
            raise ValueError(f"{self.steps} steps cannot be divided over {self.rounds} rounds")
        return self

    def steps_before(self, server_round: int) -> int:
        """Return how many steps come before a round, numbered from 1; rounds differ by at most one step."""
        return self.steps * (server_round - 1) // self.rounds

    def session_settings(self, server_round: int, devices: int) -> SessionSettings:
        """Return the settings of a round's session."""
        return SessionSettings(
            devices=devices,
            codec=self.codec,
            step_deadline_s=self.step_deadline_s,
            join_deadline_s=self.join_deadline_s,
            # A ClientApp that died does not come back within its round.
            rejoin_deadline_s=0,
            first_step=self.steps_before(server_round),
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
