"""The daemon's configuration: one TOML file, and environment variables that override it."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from edgenewton.common.addresses import is_loopback
from edgenewton.common.tls import TlsFiles
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from edge_client.daemon.environment import ENVIRONMENT_PREFIX
from edge_client.device_name import check_device_name
from edge_client.exchange.requirements import check_requirements
from edge_client.inference.engine_name import EngineName

Port = Annotated[int, Field(ge=0, le=65_535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DeviceName = Annotated[str, AfterValidator(check_device_name)]


def _words(value: object) -> object:
    return tuple(value.split()) if isinstance(value, str) else value


class ConfigError(ValueError):
    """The configuration cannot be used; the text names every entry that is wrong."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Table):
    """The model that is served."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "model"
    """Its name for clients."""
    initial: Path | None = None
    """A model file that serves while the store is empty."""
    engine: EngineName = "torch"
    """What runs it."""
    device: DeviceName = "cpu"
    """The hardware that it runs on: "cpu", "cuda" (or "cuda:1"), "mps", or "auto"."""
    allow_tasks: tuple[str, ...] = ()
    """Import paths of tasks whose code may be run because a model or a run names them, besides those of this package
    and of installed entry points."""
    keep: Count = 3
    """Versions that are kept on disk."""
    gate_margin: Annotated[float, Field(ge=0, le=1)] | None = None
    """A trained version serves only if its accuracy on this device's held-out samples is at most so much below the
    serving one's; without it every one does."""


class ServerConfig(_Table):
    """Recognition for other programs."""

    repository: Path | None = None
    """Folder of models that clients may load and unload by name; without it they may not."""
    host: str = "127.0.0.1"
    grpc_port: Port = 8001
    rest_port: Port = 8000
    insecure: bool = False
    """Allows plaintext on an address that is not loopback."""
    threads: Count = 1
    """Threads that the model may use."""
    max_batch: Count = 64
    """Samples in a run of the model, and so in a request."""
    max_waiting: Count = 256
    """Samples that wait; a request beyond it is refused at once."""
    max_request_mb: Annotated[float, Field(gt=0, le=1024)] = 16.0
    max_memory_mb: Annotated[float, Field(gt=0)] = 512.0
    """What all requests may take that are answered at the same time; those of one client may take half of it."""
    max_connections: Count = 512
    """Of each server."""
    max_connections_per_client: Count = 128
    request_deadline_s: Seconds = 30.0
    drain_deadline_s: Seconds = 10.0
    """Seconds to answer what waits when the daemon stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.insecure or is_loopback(self.host)):
            raise ValueError(f"host {self.host} can be reached from other machines, in plaintext: set insecure = true")
        if self.max_waiting < self.max_batch:
            raise ValueError(f"max_waiting {self.max_waiting} is below max_batch {self.max_batch}")
        if self.max_memory_mb < 4 * self.max_request_mb:
            raise ValueError(f"max_memory_mb {self.max_memory_mb:g} is below four times max_request_mb")
        return self


class TrainingConfig(_Table):
    """Training beside recognition."""

    threads: Count = 1
    """Threads that training may use, whatever a run asks for."""
    device: DeviceName | None = None
    """The hardware that trains, whatever a run asks for: "cpu", "cuda" (or "cuda:1"), "mps", or "auto"."""
    nice: Annotated[int, Field(ge=0, le=19)] = 19
    """Priority of training; 19 is the lowest, with which it computes only while nobody else wants the processor."""
    save_every_steps: Annotated[int, Field(ge=0)] = 20
    """Steps between two savings of the state, from which training goes on after a crash; 0 for only at the end."""
    publish_every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between two models that come to serve while their training goes on; 0 for only at the end."""
    stop_deadline_s: Seconds = 10.0
    """Seconds that training may take to stop."""


class LogConfig(_Table):
    """What the daemon writes to standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class DaemonConfig(BaseSettings):
    """Everything that the daemon can be told."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )

    state_dir: Path
    """Folder of the model store and of the state of training."""
    socket: Path | None = None
    """Where other programs of this device ask the daemon; daemon.sock in the state folder unless given."""
    tls: str = ""
    """Certificate that it shows to coordinators: a folder, or "CA,CERTIFICATE,KEY"; empty for plaintext."""
    require: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = ()
    """What it insists on, such as "secure-aggregation>=8" or "epsilon<=4": a session that does not give it is not
    joined, nor with settings that do not, whoever sent them. In the environment with spaces between them."""
    model: ModelConfig = ModelConfig()
    server: ServerConfig = ServerConfig()
    training: TrainingConfig = TrainingConfig()
    log: LogConfig = LogConfig()

    @field_validator("tls")
    @classmethod
    def _check_tls(cls, text: str) -> str:
        if text:
            TlsFiles.parse(text)
        return text

    @field_validator("require")
    @classmethod
    def _check_require(cls, required: tuple[str, ...]) -> tuple[str, ...]:
        check_requirements(required)
        return required

    @property
    def tls_files(self) -> TlsFiles | None:
        """Where this device's certificate is; None for plaintext."""
        return TlsFiles.parse(self.tls) if self.tls else None

    @property
    def socket_path(self) -> Path:
        """Where the socket is."""
        return self.socket or self.state_dir / "daemon.sock"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the environment first, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_config(path: Path) -> DaemonConfig:
    """Return the configuration of a file and the environment.

    Raises:
        ConfigError: the file cannot be read, or an entry is unknown or impossible.

    """
    try:
        tomllib.loads(path.read_text())  # pydantic-settings would ignore a file that is missing
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None

    class FromFile(DaemonConfig):
        model_config = SettingsConfigDict(toml_file=path)

    try:
        return FromFile()  # type: ignore[call-arg]  # its fields come from the file
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(map(_describe, error.errors()))) from None


def _describe(problem: ErrorDetails) -> str:
    name = ".".join(map(str, problem["loc"])) or "the configuration"
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] == "extra_forbidden":
        return f"{name} is unknown"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" + (
        "" if isinstance(problem["input"], (dict, BaseModel)) else f" (it is {problem['input']!r})"
    )
