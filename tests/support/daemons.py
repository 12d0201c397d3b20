"""Starts `edge-client daemon` as a real process, and always ends it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

from edge_client.daemon.client import DaemonClient
from edge_client.inference import Artefact
from edge_client.tasks.digits import DigitsTask

CLIENT = Path(sys.executable).with_name("edge-client")
TASK = DigitsTask()


def artefact(step: int) -> Artefact:
    torch.manual_seed(step)
    return Artefact.of(TASK, "digits", TASK.model(), step)


class Daemon:
    """A daemon whose state is in a folder, for the length of a `with` block; it can be started again."""

    def __init__(self, folder: Path, config: str = "", **environment: str) -> None:
        self.folder = folder
        self.config = folder / "daemon.toml"
        artefact(1).save(folder / "initial.pt")
        self.config.write_text(
            f'state_dir = "{folder / "state"}"\n{config}\n'
            f'[server]\ngrpc_port = 0\nrest_port = 0\n[model]\ninitial = "{folder / "initial.pt"}"\n'
        )
        self.socket = folder / "state" / "daemon.sock"
        # Beside other programs a training of the lowest priority takes for ever.
        self.environment = {"EDGENEWTON_TRAINING__NICE": "0"} | environment

    def __enter__(self) -> "Daemon":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [CLIENT, "daemon", "--config", self.config],
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | self.environment,
        )
        self.log = ""
        for line in self.process.stderr:
            self.log += line
            found = re.search(r"gRPC on (\S+:\d+), REST on (\S+:\d+)", line)
            if found:
                self.grpc, self.rest = found[1], found[2]
                return
        raise AssertionError(f"the daemon did not say that it is ready: {self.log}")

    def client(self) -> DaemonClient:
        return DaemonClient(self.socket)

    def stop(self) -> int:
        """End it by SIGTERM, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        self.log += self.process.communicate(timeout=30)[1]
        return self.process.returncode
