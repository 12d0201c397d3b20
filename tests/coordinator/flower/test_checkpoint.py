"""Checkpoints and the history of a Flower run, on disks that fail."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from broken_disks import bits, damages, flipped, full_disk
from flwr.app import Array, ArrayRecord
from safetensors.numpy import load_file, save_file

from coordinator.flower.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from coordinator.flower.history import first_rounds, save_history
from coordinator.flower.strategy import NewtonStrategy, RoundFailedError
from coordinator.report.run import ReportError, read_run

ROUNDS = [{"round": number, "step": 10 * number} for number in (1, 2, 3)]


def arrays(number):
    random = np.random.default_rng(number)
    return ArrayRecord({name: Array(random.normal(size=(30, 10)).astype(np.float32)) for name in ("w", "b")})


@pytest.fixture
def folder(tmp_path):
    for number in (1, 2, 3):
        save_checkpoint(arrays(number), tmp_path, number, 10 * number, "digits")
    save_history(ROUNDS[:2], {}, tmp_path)
    save_history(ROUNDS, {"a": 1}, tmp_path)
    return tmp_path


def test_other_programs_read_a_checkpoint(folder):
    found = load_file(folder / "round-3.safetensors")
    assert np.array_equal(found["w"], arrays(3)["w"].numpy())
    assert load_checkpoint(folder / "round-3.safetensors").history == ROUNDS


def test_every_flipped_bit_is_noticed_and_the_round_before_is_used(folder, caplog):
    path = folder / "round-3.safetensors"
    whole = path.read_bytes()
    for bit in bits(whole, count=220):
        path.write_bytes(flipped(whole, bit))
        found = load_checkpoint(path)
        assert (found.path, found.round, found.step) == (folder / "round-2.safetensors", 2, 20), bit
    assert f"{path} is damaged: " in caplog.text
    assert f"the run goes on from {folder}/round-2.safetensors in place of {path}" in caplog.text
    assert found.history == ROUNDS[:2]


def test_whatever_is_left_of_a_file_the_last_good_round_is_used(folder):
    for number in (3, 2):
        path = folder / f"round-{number}.safetensors"
        whole = path.read_bytes()
        for name, data in damages(whole).items():
            path.write_bytes(data)
            assert load_checkpoint(path).round == number - 1, name
    first = folder / "round-1.safetensors"
    first.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"round-1.safetensors is no checkpoint .*: it is empty"):
        load_checkpoint(first)
    assert first.exists()  # nothing takes its place


def test_checkpoints_of_earlier_releases_and_others_are_told_apart(folder, caplog):
    path = folder / "round-3.safetensors"
    save_file({"w": np.zeros(3)}, path, {"task": "digits", "step": "9", "round": "3"})
    assert load_checkpoint(path).step == 9
    assert f"{path} carries no digest" in caplog.text
    save_file({"w": np.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="its metadata name no round, step and task"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(folder / "round-9.safetensors")


def test_a_damaged_history_is_replaced_by_the_one_before(folder, caplog):
    path = folder / "history.json"
    whole = path.read_bytes()
    path.write_bytes(b"\xff" + whole[1:])  # no UTF-8
    with pytest.raises(ReportError, match=r"history.json is no history .*: .*; rename history.js"):
        read_run(folder)
    assert path.exists()  # a report only reads
    assert first_rounds(folder, 9) == ROUNDS[:2]
    assert json.loads(path.read_text())["config"] == {}
    assert "history.json.previous is used" in caplog.text


def test_a_damaged_checkpoint_is_shown_in_a_report(folder):
    path = folder / "round-2.safetensors"
    path.write_bytes(flipped(path.read_bytes(), 8 * 2_000))
    tasks = [checkpoint.task for checkpoint in read_run(folder).checkpoints]
    assert tasks == ["digits", "damaged: its content does not have the digest that was saved with it", "digits"]


def test_a_run_goes_on_without_room_for_a_checkpoint_but_does_not_end_well_without_the_last(tmp_path, caplog):
    config = SimpleNamespace(
        output=tmp_path, task="digits", rounds=3, fraction_train=1, fraction_evaluate=1, quorum=1, devices=1
    )
    strategy = NewtonStrategy(None, config, {}, {}, run="1")
    with full_disk(100):
        strategy._save_checkpoint(arrays(1), 2)
        strategy._try_to_save_history()
        with pytest.raises(RoundFailedError, match="round 3: .*round-3.safetensors cannot be written: File too large"):
            strategy._save_checkpoint(arrays(1), 3)
    assert caplog.messages == [
        f"round 2: {tmp_path}/round-2.safetensors cannot be written: File too large; the run goes on without this "
        "checkpoint",
        f"{tmp_path}/history.json cannot be written: File too large; the run goes on",
    ]
    assert list(tmp_path.iterdir()) == []
