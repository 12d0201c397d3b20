"""A device's own checkpoint: with it the device takes its place again, or goes on in the next session."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgenewton.common.files import write_atomically
from edgenewton.common.sealed_file import Kind, OtherKindError, check, read_kept, seal_zip
from torch import Tensor

from edge_client.optim.saved_state import in_present_names
from edge_client.sync.replica import dump_state, load_state, tensors_digest

FORMAT = "edgenewton-device-state"


@dataclass(frozen=True)
class DeviceCheckpoint:
    """What a device knew before a step."""

    session: str
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    settings: str = ""
    """What it was trained with; a state of other settings is not gone on from."""
    result: str = ""
    """SHA-256 of the weights that it gives to others, the average of the iterates; empty for those of the model.
    Personal layers are not among them."""

    @property
    def step(self) -> int:
        """The first step that it does not contain."""
        return int(in_present_names(self.optimizer)["sync"]["step"])

    def gives(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether the weights are those that it gave to others."""
        common = {name: tensor for name, tensor in self.model.items() if name in weights}
        return tensors_digest(weights).hex() == (self.result or tensors_digest(common).hex())

    @property
    def averaged(self) -> Mapping[str, Tensor]:
        """The model's weights, with the average of the iterates in place of the last where there is one."""
        return {**self.model, **self.optimizer.get("average", {}).get("parameters", {})}

    def dump(self) -> bytes:
        """Return the state as bytes, sealed."""
        return seal_zip(dump_state({"format": FORMAT, **vars(self)}), Kind.DEVICE_STATE)

    @classmethod
    def parse(cls, data: bytes) -> "DeviceCheckpoint":
        """Return the state that `dump` gave.

        Raises:
            ValueError: the bytes are damaged.
            OtherKindError: they are something else.

        """
        check(data, Kind.DEVICE_STATE)
        content = load_state(data)
        try:
            if content["format"] != FORMAT:
                raise OtherKindError(f"its format is {content['format']!r}")
            return cls(
                content["session"],
                content["model"],
                content["optimizer"],
                content.get("settings", ""),
                content.get("result", ""),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks {error}") from None

    def save(self, path: Path) -> None:
        """Write the file, and keep the one before; a crash at any time leaves either the old file or the new one.

        Raises:
            OSError: it cannot be written; the old file stays.

        """
        write_atomically(path, self.dump(), mode=0o600, keep_previous=True)

    @classmethod
    def read(cls, path: Path) -> "DeviceCheckpoint | None":
        """Return what a file has; a damaged one is set aside for the one before.

        Returns:
            None if there is no file, or no good one any more: then another device's state is taken over.

        Raises:
            ValueError: the file is something else, or cannot be read; the text names it.

        """
        try:
            return read_kept(path, Kind.DEVICE_STATE, cls.parse)
        except OtherKindError as error:
            raise ValueError(f"{path} is no state of a device: {error}; name another file") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: Path, session: str) -> "DeviceCheckpoint | None":
        """Return what was saved for a session, as `read` does; None if there is nothing for it.

        Raises:
            ValueError: the file is something else, or cannot be read; the text names it.

        """
        state = cls.read(path)
        return state if state is not None and state.session == session else None
