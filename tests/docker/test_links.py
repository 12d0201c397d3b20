"""Each device's link is as slow as its row says, in both directions, and no process can change it."""

import csv

import pytest
from container_fleet import DEVICES, DOCKER

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

ROWS = list(csv.DictReader((DOCKER / "links.csv").open()))
SERVER = """
import socket
with socket.create_server(("", 9999)) as server:
    print("ready", flush=True)
    for _ in range(2):
        connection, _ = server.accept()
        with connection:
            count, is_up = map(int, connection.recv(32).split())
            if is_up:
                while count > 0:
                    count -= len(connection.recv(min(count, 1 << 16)))
            else:
                connection.sendall(bytes(count))
            connection.sendall(b".") if is_up else connection.recv(1)
"""
CLIENT = """
import socket, time
for is_up in (1, 0):
    with socket.create_connection(("coordinator-direct", 9999)) as connection:
        count = {count}
        connection.sendall(f"{{count}} {{is_up}}".encode().ljust(32))
        began = time.perf_counter()
        if is_up:
            connection.sendall(bytes(count))
            connection.recv(1)
        else:
            left = count
            while left > 0:
                left -= len(connection.recv(min(left, 1 << 16)))
        print(count * 8e-6 / (time.perf_counter() - began))
        is_up or connection.sendall(b".")
"""


@pytest.mark.parametrize("device", range(1, DEVICES + 1))
def test_no_link_is_faster_than_its_row(fleet, device):
    row = ROWS[(device - 1) % len(ROWS)]
    up, down = float(row["up_mbit_s"]), float(row["down_mbit_s"])
    count = int(max(up, down) * 1e6 / 8 * 1.2)  # 1.2 s at the faster speed
    with fleet.serving("coordinator", SERVER):
        measured = fleet.execute(f"device-{device}", "python", "-c", CLIENT.format(count=count))
    measured_up, measured_down = map(float, measured.split())
    # A burst goes through at once; a busy machine may be slower.
    assert 0 < measured_up <= 1.1 * up
    assert 0 < measured_down <= 1.1 * down


@pytest.mark.parametrize("part", ["-link", "", "-supernode"])
def test_no_process_has_a_right_left(fleet, part):
    status = fleet.execute(f"device-1{part}", "cat", "/proc/1/status")
    known = dict(line.split(":\t") for line in status.splitlines())
    assert known["Uid"].split() == ["10001"] * 4
    assert known["NoNewPrivs"] == "1"
    assert {int(known[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
