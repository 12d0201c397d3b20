"""Real processes on disks that damage and refuse files: nobody else is hurt, and nothing good is lost."""

import contextlib
import os
import re
import subprocess

import pytest
from broken_disks import flipped
from processes import CLIENT, COORDINATOR, Coordinator, running

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

PATIENCE_S = 300

TRAINING = ("-c", "steps=8", "-c", "cadence=every-batch", "-c", "curvature=eva", "--save-every=1", "--count=2")


def device(address, folder, index):
    place = f"--coordinator {address} --session s --device d{index} --index {index}".split()
    return "train", *place, *TRAINING, "--state", folder / f"{index}.pt"


def weights(output):
    return re.search(r"weights (\w+)", output)[1]


def test_a_device_whose_state_rots_while_it_is_dead_heals_from_the_other(tmp_path, monkeypatch):
    with Coordinator("s", 2, "--lease-s=280", "--step-deadline-s=280") as coordinator, contextlib.ExitStack() as stack:
        other = stack.enter_context(running(*device(coordinator.address, tmp_path, 0)))
        with monkeypatch.context() as patch:
            patch.setenv("EDGENEWTON_FAILPOINT", "before-apply@4")
            first = stack.enter_context(running(*device(coordinator.address, tmp_path, 1)))
        assert first.wait(PATIENCE_S) == -9
        for name in ("1.pt", "1.pt.previous"):
            data = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(flipped(data, 8 * (len(data) // 2)))
        again = stack.enter_context(running(*device(coordinator.address, tmp_path, 1)))
        outputs = [client.communicate(timeout=PATIENCE_S)[0] for client in (other, again)]
        assert (other.returncode, again.returncode) == (0, 0), outputs
        assert coordinator.wait() == 0
    assert f"{tmp_path}/1.pt is damaged: its content does not have the digest" in outputs[1]
    assert f"it is set aside as {tmp_path}/1.pt.damaged" in outputs[1]
    assert "goes on from" not in outputs[1]
    assert weights(outputs[0]) == weights(outputs[1])
    checked = subprocess.run(
        [CLIENT, "verify", tmp_path / "1.pt", tmp_path / "1.pt.damaged"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 1
    assert checked.stdout.splitlines()[0] == f"{tmp_path}/1.pt: a device's state, whole"
    assert "1.pt.damaged: a device's state is damaged: its content" in checked.stdout


LIMITED = ["bash", "-c", 'ulimit -f "$0"; exec "$@"']
"""Runs a command whose files may have so many KiB: its disk is full beyond that."""


def test_full_disks_of_a_coordinator_and_a_device_stop_no_session(tmp_path):
    record = tmp_path / "record.sqlite"
    serve = [COORDINATOR, "serve", "--port=0", "--session=s", "--devices=2", "--once", "--record", record]
    with subprocess.Popen(
        [*LIMITED, "160", *map(str, serve)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as coordinator:
        try:
            for line in coordinator.stdout:
                if found := re.search(r"listens on (\S+:\d+);", line):
                    break
            clients = [
                subprocess.Popen(
                    [*LIMITED, "4", CLIENT, *map(str, device(found[1], tmp_path, index))],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=os.environ,
                )
                for index in range(2)
            ]
            outputs = [client.communicate(timeout=PATIENCE_S)[0] for client in clients]
            log, _ = coordinator.communicate(timeout=PATIENCE_S)
        finally:
            coordinator.kill()
    assert [client.returncode for client in clients] == [0, 0], outputs
    assert weights(outputs[0]) == weights(outputs[1])
    for index, output in enumerate(outputs):
        assert output.count("File too large; training goes on, and what was saved before stays") == 1
        assert f"WARNING: the last state is not saved: {tmp_path}/{index}.pt cannot be written" in output
    assert f"the record {record} cannot be written: disk I/O error; sessions go on" in log
    assert "Traceback" not in log + "".join(outputs)
    checked = subprocess.run([COORDINATOR, "verify", record], capture_output=True, text=True, check=False)
    assert checked.stdout == f"{record}: a coordinator's record, whole\n"
