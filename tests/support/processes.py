"""Starts the project's commands as real processes, and always ends them."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COORDINATOR = Path(sys.executable).with_name("edge-coordinator")
_ALSO_IMPORTED = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
CLIENT = Path(sys.executable).with_name("edge-client")
DEADLINE_S = 120
IMPATIENT = ("--heartbeat-s=0.2", "--lease-s=1", "--rejoin-deadline-s=0")
"""Options of a coordinator that waits for no device that it lost."""


class Coordinator:
    """`edge-coordinator serve` on a free port, for the length of a `with` block.

    Without a session it serves those that runs open.
    """

    def __init__(self, session: str | None, devices: int = 0, *options: str) -> None:
        place = f"--session {session} --devices {devices} --once" if session else "--on-demand"
        self._arguments = [COORDINATOR, "serve", "--port=0", *place.split(), *options]

    def __enter__(self) -> "Coordinator":
        self.process = subprocess.Popen(
            self._arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self.output = ""
        for line in self.process.stdout:
            self.output += line
            found = re.search(r"listens on (\S+:\d+);", line)
            if found:
                self.address = found[1]
                return self
        raise AssertionError(f"the coordinator did not say where it listens: {self.output}")

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """Return the exit status once the session is over."""
        rest, _ = self.process.communicate(timeout=DEADLINE_S)
        self.output += rest
        return self.process.returncode


@contextlib.contextmanager
def running(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run `edge-client` for the length of a `with` block; it is killed at the end if it still runs."""
    client = subprocess.Popen(
        [str(argument) for argument in (CLIENT, *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *_ALSO_IMPORTED])},
    )
    with client:
        try:
            yield client
        finally:
            client.kill()


def train_on_devices(address: str, session: str, count: int, folder: Path, *settings: str) -> list[str]:
    """Train on `count` device processes at once, save each one's model in `folder`, and return what they printed.

    A setting may have the device's number as `{index}`.
    """
    with contextlib.ExitStack() as stack:
        clients = []
        for index in range(count):
            place = f"--coordinator {address} --session {session} --device d{index} --index {index} --count {count}"
            options = [part for setting in settings for part in ("-c", setting.format(index=index))]
            output = ["--output", folder / f"{index}.pt"]
            clients.append(stack.enter_context(running("train", *place.split(), *options, *output)))
        outputs = [client.communicate(timeout=DEADLINE_S)[0] for client in clients]
        for client, output in zip(clients, outputs, strict=True):
            assert client.returncode == 0, output
    return outputs
