"""`flwr run .` of an app of one's own, as `edge-client new` writes it and unchanged, from outside the checkout."""

import json
import re
import subprocess

import pytest

from benchmarks.shared.private_flower import INSTALLS_NOTHING, RAY_DID_NOT_START, flower_command, private_flower

pytestmark = pytest.mark.flower

NAME = "worn-bearings"


@pytest.mark.timeout(900)
def test_a_new_app_runs_as_it_is(tmp_path, monkeypatch):
    subprocess.run([flower_command("edge-client"), "new", NAME, "--flower"], cwd=tmp_path, check=True)
    monkeypatch.setenv(INSTALLS_NOTHING, "0")  # as Flower does by itself
    with private_flower(tmp_path / "flower") as flower:
        for _ in range(2):
            patient = {"output": tmp_path / "run", "join-deadline-s": 300.0}  # on a busy machine actors start slowly
            process = flower.run(patient, 2, app=tmp_path / NAME)
            output, _ = process.communicate(timeout=420)
            if RAY_DID_NOT_START not in output:
                break
    output = re.sub(r"\x1b\[\d+m", "", output)
    print(output)  # shown if something fails
    assert "FLWR_HOME" not in output
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [entry["round"] for entry in history["rounds"]] == [1, 2, 3]
    assert history["rounds"][-1]["evaluate"]["accuracy"] > 0.9
