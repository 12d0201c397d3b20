"""The ServerApp's part of a Flower run's config; the rest belongs to the devices and is passed on to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from edgenewton.common.tls import TlsFiles
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from coordinator.identity.server_tls import ServerTlsFiles
from coordinator.session.settings import MAX_DEVICES, AggregatorName, CodecName, Seconds, SecondsOrZero, SessionSettings


def _split_names(text: object) -> object:
    return tuple(filter(None, map(str.strip, text.split(",")))) if isinstance(text, str) else text


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]


_SESSION = SessionSettings()


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
    codec: CodecName = _SESSION.codec
    """How tensors are written on the wire."""
    aggregator: AggregatorName = _SESSION.aggregator
    """How the devices' contributions become one; "history" bears bad devices, a quarter of them."""
    bad_devices: Annotated[int, Field(ge=-1, le=MAX_DEVICES // 2)] = -1
    """So many bad devices the aggregator must bear; -1 for a quarter of them."""
    max_samples: Annotated[int, Field(ge=0)] = 0
    """A device's contribution counts with at most so many samples; 0 for 16 times the median of the devices'."""
    secure_aggregation: bool = _SESSION.secure_aggregation
    """Whether the devices mask what they send, so that the coordinator learns sums only."""
    mask_bits: Literal[4, 8] = _SESSION.mask_bits
    """Bits of a device's gradients under masks, without those that the sum takes."""
    coordinator: Annotated[str, Field(pattern=r"^$|^\S+:\d+$")] = ""
    """Address, host:port, of a coordinator that is a process of its own (`edge-coordinator serve --on-demand`), for the
    ServerApp and for all devices; empty to run one inside the ServerApp, for devices on the same machine."""
    tls: Annotated[TlsFiles | None, BeforeValidator(lambda text: TlsFiles.parse(text) if text else None)] = None
    """Operator's certificate to show to the coordinator, on the machine of the SuperLink: a folder, or
    "CA,CERTIFICATE,KEY"; empty for plaintext."""
    server_tls: Annotated[
        ServerTlsFiles | None, BeforeValidator(lambda text: ServerTlsFiles.parse(text) if text else None)
    ] = None
    """Certificate of the coordinator inside the ServerApp, as for `edge-coordinator serve --tls`; needs `tls` too, so
    that the run can follow its own sessions. Empty for plaintext."""
    allow: Names = ()
    """Devices that its rounds admit, by the names in their certificates, with commas between; all unless given."""
    allow_labels: Names = ()
    """Labels of devices that are admitted, too."""
    step_deadline_s: Seconds = _SESSION.step_deadline_s
    """Seconds that a step may take."""
    join_deadline_s: Seconds = _SESSION.join_deadline_s
    """Seconds for devices to connect before a round, and to join its session, from the first."""
    rejoin_deadline_s: SecondsOrZero = _SESSION.rejoin_deadline_s
    """Seconds that a round without its quorum waits for devices to come back."""
    lease_s: Annotated[float, Field(ge=0.4, le=86_400)] = _SESSION.lease_s
    """Seconds of silence after which a device loses its place in a round."""
    round_deadline_s: Seconds = 3_600.0
    """Seconds that a round's training, or its evaluation, may take."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rounds > self.steps:
            raise ValueError(f"{self.steps} steps cannot be divided over {self.rounds} rounds")
        if self.coordinator and self.server_tls:
            raise ValueError("server-tls is for a coordinator inside the ServerApp; that at `coordinator` has its own")
        if not self.coordinator and bool(self.tls) != bool(self.server_tls):
            raise ValueError("tls and server-tls belong together, unless `coordinator` names another process")
        if (self.allow or self.allow_labels) and not self.tls:
            raise ValueError("allow and allow-labels need tls: in plaintext nobody can show who he is")
        if 2 * self.bad_devices >= self.devices:
            raise ValueError(f"bad-devices {self.bad_devices} is half of the run's {self.devices} devices, or more")
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
            aggregator=self.aggregator,
            # A round may begin with fewer devices, of which as many can't be bad.
            bad_devices=None if self.bad_devices < 0 else min(self.bad_devices, (devices - 1) // 2),
            max_samples=self.max_samples or None,
            secure_aggregation=self.secure_aggregation,
            mask_bits=self.mask_bits,
            step_deadline_s=self.step_deadline_s,
            join_deadline_s=self.join_deadline_s,
            rejoin_deadline_s=self.rejoin_deadline_s,
            lease_s=self.lease_s,
            heartbeat_s=self.lease_s / 4,
            first_step=first_step,
            allow=self.allow,
            allow_labels=self.allow_labels,
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
