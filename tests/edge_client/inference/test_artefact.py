import os
import pickle
import resource
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edge_client.inference import Artefact, ArtefactError
from edge_client.tasks.digits import DigitsTask

TASK = DigitsTask()


def artefact(step: int = 7) -> Artefact:
    torch.manual_seed(1)
    return Artefact.of(TASK, "digits", TASK.model(), step)


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "models" / "model.pt"
    artefact().save(path)
    return path


def test_everything_survives_the_file(model_path):
    loaded, original = Artefact.load(model_path), artefact()
    assert (loaded.task, loaded.labels, loaded.input_shape, loaded.step) == ("digits", TASK.labels, (1, 8, 8), 7)
    assert all(torch.equal(tensor, original.weights[name]) for name, tensor in loaded.weights.items())
    assert [path.name for path in model_path.parent.iterdir()] == ["model.pt"]  # nothing half-written is left
    assert loaded.digest == original.digest
    assert loaded.software_version == version("edgenewton")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.arange(6.0).reshape(2, 3).T,
        torch.nn.Parameter(torch.ones(2)),
    ],
)
def test_every_kind_of_tensor_survives(tmp_path, tensor):
    replace(artefact(), weights={"one": tensor, "tied": tensor}).save(tmp_path / "model.pt")
    loaded = Artefact.load(tmp_path / "model.pt").weights["tied"]
    assert loaded.dtype == tensor.dtype
    assert torch.equal(loaded, tensor)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "other"},
        {"labels": tuple("9876543210")},
        {"input_shape": (8, 8)},
        {"step": 8},
        {"software_version": "0"},
        {"weights": {"a": torch.zeros(2, 3)}},
        {"weights": {"b": torch.zeros(2, 2)}},
        {"weights": {"a": torch.zeros(4)}},
        {"weights": {"a": torch.zeros(2, 2, dtype=torch.int32)}},
        {"weights": {"a": torch.tensor([[0.0, 0.0], [0.0, 1e-30]])}},
    ],
)
def test_the_digest_covers_everything(changes):
    original = replace(artefact(), weights={"a": torch.zeros(2, 2)})
    assert replace(original, **changes).digest != original.digest


def test_the_digest_ignores_the_order_of_weights():
    original = artefact()
    assert replace(original, weights=dict(reversed(original.weights.items()))).digest == original.digest


def test_a_save_that_fails_leaves_the_old_file(model_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # as a full disk does, in the middle of the weights
    try:
        with pytest.raises((OSError, RuntimeError)):
            artefact(step=8).save(model_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Artefact.load(model_path).step == 7
    assert [path.name for path in model_path.parent.iterdir()] == ["model.pt"]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def rewrite(path: Path, **changes) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content | changes, path)


def drop(path: Path, *keys: str) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in content.items() if key not in keys}, path)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(artefact().weights["hidden.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


def change_a_weight(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["weights"]["conv1.bias"][0] += 1e-3
    torch.save(content, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist; train a model first"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"garbage" * 100), "is not a model"),
        (lambda path: Image.new("L", (8, 8)).save(path, format="PNG"), "is not a model"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is not a model that can be read, or is damaged"),
        (lambda path: torch.save({"weights": {}}, path), "is not a model of EdgeNewton"),
        (lambda path: torch.save([1, 2], path), "is not a model of EdgeNewton"),
        (lambda path: rewrite(path, format_version=2), "format version 2; this release reads up to 1"),
        (lambda path: rewrite(path, labels=["a"]), "is damaged"),
        (lambda path: rewrite(path, weights=3), "is damaged"),
        (lambda path: rewrite(path, format_version="1"), "is damaged: it has no format version"),
        (lambda path: rewrite(path, format_version=2, digest=0), "format version 2"),
        (lambda path: rewrite(path, format="other"), "is not a model of EdgeNewton"),
        (lambda path: rewrite(path, weights={"a": 3}), "is damaged"),
        (lambda path: rewrite(path, step=8), "is damaged: its content does not have the digest"),
        (lambda path: drop(path, "labels", "digest"), "is not a whole model: it lacks labels, digest"),
        (lambda path: drop(path, "format_version"), "is damaged: it has no format version"),
        (change_a_weight, "is damaged: its content does not have the digest"),
        (flip_a_byte, "damaged"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
)
def test_files_that_are_no_whole_model_are_refused(model_path, damage, message):
    damage(model_path)
    with pytest.raises(ArtefactError, match=message):
        Artefact.load(model_path)


def test_wherever_a_byte_flips_the_model_is_whole_or_refused(model_path):
    whole = model_path.read_bytes()
    original = artefact()
    random = np.random.default_rng(0)
    refused = 0
    # The two ends hold the description and the zip directory, where a flip does more than change a weight.
    for position in (*random.integers(0, 3000, 60), *random.integers(len(whole) - 3000, len(whole), 60)):
        content = bytearray(whole)
        content[position] ^= random.integers(1, 256)
        model_path.write_bytes(content)
        try:
            loaded = Artefact.load(model_path)
        except ArtefactError:
            refused += 1
        else:
            assert loaded.digest == original.digest
    assert refused > 20


def load_without_care(path: Path) -> None:
    torch.load(path, weights_only=False)


def unpickle(path: Path) -> None:
    pickle.loads(path.read_bytes())


@pytest.mark.parametrize("careless", [unpickle, load_without_care])
def test_a_file_that_would_run_code_is_refused(model_path, tmp_path, careless):
    trace = tmp_path / "was-here"
    content = {"format": "edgenewton-model", "weights": Malicious(trace)}
    if careless is unpickle:
        model_path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, model_path)
    with pytest.raises(ArtefactError, match="want.* to run code when it is loaded; it was refused"):
        Artefact.load(model_path)
    assert not trace.exists()
    careless(model_path)  # the file is as bad as it is meant to be
    assert trace.exists()


def test_checkpoint_becomes_a_model(tmp_path):
    path = tmp_path / "round-1.safetensors"
    save_file(artefact().weights, path, {"task": "digits", "step": "20"})
    assert Artefact.from_checkpoint(path).step == 20
    save_file(artefact().weights, path)
    with pytest.raises(ArtefactError, match="no checkpoint of EdgeNewton"):
        Artefact.from_checkpoint(path)
    path.write_text("nonsense")
    with pytest.raises(ArtefactError, match="not a checkpoint that can be read"):
        Artefact.from_checkpoint(path)
