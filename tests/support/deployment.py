"""Flower's deployment engine on loopback: a SuperLink with TLS, known SuperNodes, a database, and a device for each."""

import contextlib
import os
import re
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from daemons import Daemon
from processes import Coordinator

from benchmarks.shared.ports import free_port
from benchmarks.shared.private_flower import PROJECT, PrivateFlower, flower_command

DEADLINE_S = 150
_OPENSSL = """
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -subj /CN=fleet-ca -days 2 -out ca.pem
openssl ecparam -name prime256v1 -genkey -noout -out server.key
openssl req -new -key server.key -subj /CN=superlink -addext subjectAltName=IP:127.0.0.1,DNS:localhost -out server.csr
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy -out server.pem
"""


def until(is_true: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what} has not happened"
        time.sleep(0.1)


class Device:
    """A daemon, and the SuperNode beside it."""

    def __init__(self, fleet: "Fleet", index: int) -> None:
        self.name = f"device-{index}"
        self.folder = fleet.folder / self.name
        self.folder.mkdir()
        self.daemon = Daemon(self.folder, "[training]\nsave_every_steps = 1")
        self._fleet = fleet
        self._index = index
        key = ec.generate_private_key(ec.SECP384R1())
        self.key = self.folder / "node"
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        self.key.with_suffix(".pub").write_bytes(public)

    def start(self) -> None:
        """Start both, once the SuperLink knows the key."""
        self._fleet.flwr("supernode", "register", self.key.with_suffix(".pub"), "private")
        self.daemon.start()
        self.start_node()

    def start_node(self) -> None:
        self.node = self._fleet.spawn_node(
            f"--auth-supernode-private-key={self.key}",
            f"--node-config=partition-id={self._index} num-partitions=3 daemon-socket='{self.daemon.socket}'",
        )

    def stop_node(self) -> None:
        """Let the SuperNode leave."""
        os.killpg(self.node.pid, signal.SIGTERM)
        self.node.wait(30)

    def status(self):
        with self.daemon.client() as client:
            return client.status()


class Fleet(PrivateFlower):
    """A secure SuperLink, a coordinator of its own, and devices."""

    def __init__(self, folder: Path, coordinator: str) -> None:
        super().__init__(folder, supernodes=1)  # not the simulation engine
        self.folder = folder
        self.coordinator = coordinator
        for command in _OPENSSL.strip().splitlines():
            subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)

    def start(self) -> None:
        self._root = self.folder / "root"
        self._root.mkdir()
        self._prepare(self._root)
        config = self._root / "flower" / "config.toml"
        config.write_text(config.read_text().replace("insecure = true", f'root-certificates = "{self.folder}/ca.pem"'))
        self.superlink()

    def superlink(self) -> None:
        """Start the SuperLink; its state is in the database."""
        self._superlink = self._spawn(
            "flower-superlink",
            f"--ssl-ca-certfile={self.folder}/ca.pem",
            f"--ssl-certfile={self.folder}/server.pem",
            f"--ssl-keyfile={self.folder}/server.key",
            "--enable-supernode-auth",
            f"--database={self.folder}/superlink.sqlite",
            "--host=127.0.0.1",
            f"--port={self.port}",
        )
        self._wait_until_up(self._superlink)

    def crash_superlink(self) -> None:
        """Kill the SuperLink, and start it again from its database."""
        os.killpg(self._superlink.pid, signal.SIGKILL)
        self._superlink.wait()
        self.superlink()

    def spawn_node(self, *options: str) -> "subprocess.Popen[bytes]":
        place = (f"--superlink=127.0.0.1:{self.port}", f"--port={free_port()}")
        node = self._spawn("flower-supernode", f"--root-certificates={self.folder}/ca.pem", *place, *options)
        self._nodes.append(node)
        return node

    def _wait_until_up(self, superlink: "subprocess.Popen[bytes]") -> None:
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")

        def answers() -> bool:
            assert superlink.poll() is None, self.log_path.read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"https://127.0.0.1:{self.port}/health", verify=context, timeout=1).is_success
            return False

        until(answers, "the SuperLink's start")

    def flwr(self, *arguments: object) -> str:
        """Run a command of Flower to its end, and return what it printed."""
        command = [flower_command("flwr"), *map(str, arguments)]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.sub(r"\x1b\[\d+m", "", done.stdout)

    def submit(self, settings: dict[str, object]) -> str:
        """Start a run without waiting for it, and return its id."""
        config = " ".join(f"{key}={value!r}" for key, value in self._with_defaults(settings).items())
        printed = self.flwr("run", PROJECT, "private", "-c", config)
        return re.search(r"run (\d+)", printed)[1]

    def train(self, settings: dict[str, object]) -> str:
        """Run to the end, and return the run's log."""
        process = self.run(self._with_defaults(settings), devices=0)
        output, _ = process.communicate(timeout=DEADLINE_S)
        return re.sub(r"\x1b\[\d+m", "", output)

    def _with_defaults(self, settings: dict[str, object]) -> dict[str, object]:
        return {"coordinator": self.coordinator, "curvature": "eva", "batch-size": 16, **settings}


@contextlib.contextmanager
def fleet(folder: Path) -> Iterator[tuple[Fleet, list[Device]]]:
    """Run a fleet of two devices, and a third that has not started yet."""
    with Coordinator(None) as coordinator, contextlib.ExitStack() as stack:
        flower = Fleet(folder, coordinator.address)
        stack.callback(flower.stop)
        flower.start()
        devices = [Device(flower, index) for index in range(3)]
        for device in devices[:2]:
            stack.callback(lambda d=device: d.daemon.process.kill())
            device.start()
        yield flower, devices
