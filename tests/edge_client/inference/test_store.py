import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from edgenewton.common.failpoints import STORE_FAILPOINTS, arm

from edge_client.inference import Artefact
from edge_client.inference.accuracy_gate import AccuracyGate
from edge_client.inference.store import ModelStore, StoreError
from edge_client.tasks.digits import DigitsTask

TASK = DigitsTask()


def artefact(step: int) -> Artefact:
    torch.manual_seed(step)
    return Artefact.of(TASK, "digits", TASK.model(), step)


def filled(folder, count=2, **options):
    """Return an open store with versions 1 to `count`, of as many steps."""
    store = ModelStore(folder, **options)
    for step in range(1, count + 1):
        store.promote(artefact(step), accuracy=step / 10)
    return store


def test_the_promoted_version_serves_also_after_opening_again(tmp_path):
    with filled(tmp_path) as store:
        assert (store.serving.version, store.serving.step, store.serving.accuracy) == (2, 2, 0.2)
        before = store.serving
    with ModelStore(tmp_path) as store:
        assert store.serving == before
        assert store.load().digest == artefact(2).digest == before.digest


def test_an_empty_store_serves_nothing(tmp_path):
    with ModelStore(tmp_path / "new" / "store") as store:
        assert store.serving is None
        with pytest.raises(StoreError, match="holds no model that can be used"):
            store.load()


def test_the_last_versions_are_kept_and_numbers_never_come_back(tmp_path):
    with filled(tmp_path, 5, keep=3) as store:
        assert store.versions() == [3, 4, 5]
        store.reject("damaged, says the test")
        assert store.serving.version == 4
        assert store.promote(artefact(6)).version == 6


@pytest.mark.parametrize("point", STORE_FAILPOINTS)
def test_killed_at_any_point_of_a_promotion_the_last_good_version_serves(tmp_path, point):
    filled(tmp_path, keep=2).close()
    child = os.fork()
    if child == 0:
        try:
            arm(f"{point}@3")
            ModelStore(tmp_path, keep=2).promote(artefact(3))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    is_promoted = STORE_FAILPOINTS.index(point) >= STORE_FAILPOINTS.index("serving-replaced")
    with ModelStore(tmp_path, keep=2) as store:
        assert store.serving.version == (3 if is_promoted else 2)
        assert store.load().digest == artefact(store.serving.version).digest
        assert store.promote(artefact(4)).version in (3, 4)  # it goes on
        assert store.load().digest == artefact(4).digest
        assert len(store.versions()) == 2
    assert not list((tmp_path / "versions").glob("*.partial"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["bits", "empty", "missing", "manifest", "folder", "manifest of another"])
def test_a_damaged_version_is_set_aside_for_the_last_good_one(tmp_path, damage, caplog):
    filled(tmp_path, 3).close()
    folder = tmp_path / "versions" / "3"
    match damage:
        case "bits":
            flip(folder / "model.pt")
        case "empty":
            (folder / "model.pt").write_bytes(b"")
        case "missing":
            (folder / "model.pt").unlink()
        case "manifest":
            (folder / "manifest.json").write_text("{")
        case "folder":
            for path in folder.iterdir():
                path.unlink()
        case "manifest of another":
            (folder / "manifest.json").write_text((tmp_path / "versions" / "2" / "manifest.json").read_text())
    with ModelStore(tmp_path) as store:
        assert store.serving.version == 2
        assert store.load().step == 2
    assert "version 3 is set aside" in caplog.text
    assert (tmp_path / "versions" / "3.damaged").is_dir()
    with ModelStore(tmp_path) as store:  # and it stays so
        assert store.serving.version == 2


def test_a_version_that_breaks_while_the_store_is_open_is_set_aside_when_it_is_loaded(tmp_path):
    with filled(tmp_path) as store:
        flip(tmp_path / "versions" / "2" / "model.pt")
        assert store.load().step == 1
        assert store.serving.version == 1


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": "x"}', '{"version": 9}'])
def test_without_a_name_of_the_serving_version_the_newest_serves(tmp_path, content):
    filled(tmp_path).close()
    (tmp_path / "serving.json").write_text(content)
    with ModelStore(tmp_path) as store:
        assert store.serving.version == 2
    assert json.loads((tmp_path / "serving.json").read_text())["version"] == 2


def test_one_process_at_a_time_and_one_task(tmp_path):
    with filled(tmp_path) as store:
        with pytest.raises(StoreError, match="is in use by another process"):
            ModelStore(tmp_path)
        with pytest.raises(StoreError, match="serves task 'digits'; a model of task 'trees' does not belong there"):
            store.promote(replace(artefact(3), task="trees"))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file cannot be used: "):
        ModelStore(tmp_path / "file")


def test_the_gate_lets_a_small_loss_pass():
    gate = AccuracyGate(margin=0.02)
    assert gate.refusal(0.5, None) is None
    assert gate.refusal(0.89, 0.90) is None
    refusal = gate.refusal(0.87, 0.90)
    assert refusal == (
        "its accuracy is 87.0% on this device's held-out samples, the serving version's 90.0%; it may be 2.0% below"
    )
