"""What happens to a device's place while the device computes."""

from dataclasses import dataclass

from edge_client.exchange.remote.assembly import AssembledStep


@dataclass(frozen=True)
class Committed:
    """The step that was waited for has committed."""

    step: AssembledStep


@dataclass(frozen=True)
class Healed:
    """A state of another device has come; the stream carries the steps from it on."""

    step: int
    data: bytes
    """Empty if this device's own state has become that of the session."""


@dataclass(frozen=True)
class StateWanted:
    """Another device needs this one's state."""


@dataclass(frozen=True)
class MasksReady:
    """It is settled who masks in the step that is on."""


@dataclass(frozen=True)
class Lost:
    """The place is lost."""

    error: Exception


Event = Committed | Healed | StateWanted | MasksReady | Lost
