"""Identities by the commands alone: an authority, a coordinator, devices that come, and one whose certificate goes."""

import contextlib
import json
import time

import pytest
from processes import Coordinator, running
from typer.testing import CliRunner

from coordinator.cli.commands import app

pytestmark = pytest.mark.processes

STEPS = 10


class Fleet:
    """An authority in a folder."""

    def __init__(self, folder) -> None:
        self.folder, self.ca = folder, folder / "ca"
        self.run("init", self.ca)
        self.run("issue", "hub", "--server")
        self.run("issue", "boss", "--label", "operator")
        for name in ("d0", "d1", "d2"):
            self.run("issue", name, "--label", "field")

    def run(self, command: str, *arguments: object) -> None:
        place = [] if command == "init" else ["--ca", self.ca]
        result = CliRunner().invoke(app, ["ca", command, *map(str, (*arguments, *place))])
        assert result.exit_code == 0, result.output

    def device(self, name: str):
        return self.ca / "devices" / name

    def audited(self, event: str) -> list[dict]:
        lines = [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def serials(self, name: str) -> list[str]:
        return [line["serial"] for line in self.audited("joined") if line["device"] == name]


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def train(address: str, name: str, tls, *options: object):
    place = ("--coordinator", address, "--session", "s", "--device", name, "--index", name[-1], "--count", 2)
    return running("train", *place, *(("--tls", tls) if tls else ()), *options)


def ended(client) -> tuple[int, str]:
    output, _ = client.communicate(timeout=60)
    return client.returncode, " ".join(output.split())


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_fleet_with_certificates(fleet, tmp_path):
    options = ("--tls", fleet.ca, "--allow-label", "field", "--audit", tmp_path / "audit.jsonl")
    steps = ("-c", f"steps={STEPS}", "-c", "cadence=every-batch", "-c", "curvature=eva")
    with (
        Coordinator("s", 2, "--join-deadline-s=600", *options) as coordinator,
        train(coordinator.address, "d0", fleet.device("d0"), *steps) as first,
        contextlib.ExitStack() as stack,
    ):
        address = coordinator.address
        fleet.run("revoke", "d2")
        others = [
            stack.enter_context(train(address, name, tls))
            for name, tls in (("d2", fleet.device("d2")), ("d1", fleet.device("boss")), ("d2", None))
        ]
        outputs = [ended(client) for client in others]
        assert [code for code, _ in outputs] == [1, 1, 1]
        revoked, wrong, plain = [output for _, output in outputs]
        assert "the certificate of device 'd2' (serial" in revoked
        assert "the certificate is that of device 'boss'; it cannot speak for device 'd1'" in wrong
        assert "it speaks TLS, and this side plaintext" in plain

        wait_until(lambda: len(fleet.serials("d0")) == 1)
        fleet.run("issue", "d0", "--label", "field")
        fleet.run("revoke", "d0", "--keep-latest")
        wait_until(lambda: len(fleet.serials("d0")) == 2)  # it is back with its new certificate

        with train(address, "d1", fleet.device("d1"), *steps) as second:
            results = [ended(client) for client in (first, second)]
        for code, output in results:
            assert code == 0, output
            assert f"{STEPS} steps" in output
        assert len({output.partition(" weights ")[2].split()[0] for _, output in results}) == 1
        assert coordinator.wait() == 0
    assert len(set(fleet.serials("d0"))) == 2
    assert [line["device"] for line in fleet.audited("revoked")] == ["d0"]
    finished = {line["device"]: line["steps"] for line in fleet.audited("left") if line["status"] == "OK"}
    assert finished == {"d0": STEPS, "d1": STEPS}
    assert {line["status"] for line in fleet.audited("refused")} == {"UNAUTHENTICATED", "PERMISSION_DENIED"}
