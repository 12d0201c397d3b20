"""A device's own checkpoint: one file from which it takes its place again after a restart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgenewton.files import write_atomically
from torch import Tensor

from edge_client.replica import dump_state, load_state

FORMAT = "edgenewton-device-state"


@dataclass(frozen=True)
class DeviceState:
    """What a device knew before a step."""

    session: str
    model: dict[str, Tensor]
    optimizer: dict[str, Any]

    @property
    def step(self) -> int:
        """The first step that it does not contain."""
        return int(self.optimizer["steps"])

    def save(self, path: Path) -> None:
        """Write the file; a crash at any time leaves either the old file or the new one."""
        data = dump_state({"format": FORMAT, "session": self.session, "model": self.model, "optimizer": self.optimizer})
        write_atomically(path, data, mode=0o600)

    @classmethod
    def load(cls, path: Path, session: str) -> "DeviceState | None":
        """Return what was saved for a session; None if there is nothing for it.

        Raises:
            ValueError: the file is damaged or something else; the text names it.

        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            content = load_state(data)
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            state = cls(content["session"], content["model"], content["optimizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no state of a device, or damaged ({error}); remove it to begin anew") from None
        return state if state.session == session else None
