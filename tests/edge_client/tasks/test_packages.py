import os
import signal
import stat
import time

import pytest
import torch
from small_packages import fashion_files, leaves_files, write_deb, write_wheel
from typer.testing import CliRunner

from edge_client import cli
from edge_client.tasks import TASKS, Partition, TaskError, load_task
from edge_client.tasks.packages import DebianPackage, FetchError, PackagedTask, PythonPackage
from edge_client.tasks.packages.archive import read_members

DEB = "dataset-fashion-mnist_1-1_all.deb"
PACKAGED = [name for name in TASKS if isinstance(load_task(name), PackagedTask)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGENEWTON_CACHE", str(folder))
    return folder


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: handler)
    return lambda *arguments: CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def apt_get(tmp_path, monkeypatch):
    """Return what writes a program that is found as apt-get, and runs some lines of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(lines):
        path = folder / "apt-get"
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return write


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_debian_package_is_fetched_and_trained_on(run, apt_get, tmp_path, cache, compression):
    deb = write_deb(tmp_path / DEB, fashion_files(), compression)
    apt_get(f'[ "$(echo $* | grep -o "download .*")" = "download dataset-fashion-mnist" ] && cp {deb} .')
    result = run("fetch", "fashion")
    assert result.exit_code == 0, result.output
    task = load_task("fashion")
    parts = [task.train_data(Partition(index, 2)) for index in range(2)]
    assert [len(part) for part in parts] == [30, 30]
    assert parts[0].inputs.shape == (30, 1, 28, 28)
    assert len(task.test_data(Partition())) == 20
    assert [path.name for path in cache.iterdir()] == ["fashion-mnist-1.safetensors"]
    assert "here already" in run("fetch", "fashion-vit").output


def test_a_wheel_is_fetched_by_pip_and_trained_on(run, tmp_path, monkeypatch):
    write_wheel(tmp_path, "sktime", {name.replace("aeon", "sktime"): of for name, of in leaves_files().items()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    result = run("fetch", "leaves")  # there is no aeon: sktime takes its place
    assert result.exit_code == 0, result.output
    assert len(load_task("leaves").train_data(Partition())) == 48
    trained = run("train", "-c", "task=leaves", "-c", "steps=3", "-c", "partition=iid")
    assert trained.exit_code == 0, trained.output
    assert "of 18 held-out samples right" in trained.output


@pytest.mark.parametrize("form", ["file", "folder of packages", "unpacked"])
def test_data_come_from_a_place_that_was_named(run, tmp_path, form):
    place = tmp_path / "place"
    place.mkdir()
    if form == "unpacked":
        for name, content in fashion_files().items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    else:
        deb = write_deb(place / DEB, fashion_files())
        place = deb if form == "file" else place
    result = run("fetch", "fashion", "--from", place)
    assert result.exit_code == 0, result.output
    assert len(load_task("fashion").train_data(Partition())) == 60


@pytest.mark.parametrize("name", PACKAGED)
def test_training_without_data_names_the_command_that_gets_them(run, name):
    result = run("train", "-c", f"task={name}", "-c", "steps=1")
    assert result.exit_code == 1
    assert f"run `edge-client fetch {name}`" in result.output
    assert "Traceback" not in result.output


def test_the_list_shows_every_task_with_data_of_packages(run):
    result = run("fetch")
    assert result.exit_code == 0
    for name in PACKAGED:
        assert name in result.output


def test_what_has_no_data_to_fetch_is_said(run):
    assert "digits: needs no data from elsewhere" in run("fetch", "digits").output
    assert "task 'nothing' is unknown" in run("fetch", "nothing").output


def test_without_apt_get_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"there is no apt-get here; download its \.deb .* with --from"):
        DebianPackage("some-data", ("x",)).fetch(10)


def test_what_apt_get_says_is_handed_on(apt_get):
    apt_get('echo "E: Unable to locate package some-data"; exit 100')
    with pytest.raises(FetchError, match=r"Unable to locate package some-data\); run `apt-get update` as root"):
        DebianPackage("some-data", ("x",)).fetch(10)


def test_a_download_that_hangs_ends_at_its_deadline_with_all_that_it_started(apt_get, tmp_path):
    apt_get(f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    began = time.monotonic()
    with pytest.raises(FetchError, match="did not download some-data in 1 s; allow it more with --deadline-s"):
        DebianPackage("some-data", ("x",)).fetch(1)
    assert time.monotonic() - began < 30
    child = int((tmp_path / "pid").read_text())
    status = f"/proc/{child}/stat"
    until = time.monotonic() + 10
    while os.path.exists(status) and open(status).read().split()[2] != "Z":  # noqa: PTH110, PTH123, SIM115
        assert time.monotonic() < until, "the grandchild lives"
        time.sleep(0.01)


def test_without_an_index_pip_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match="pip cannot download no-such-data .* name the file with --from"):
        PythonPackage("no-such-data", ("x",)).fetch(60)


def test_a_package_without_the_file_is_named(tmp_path):
    deb = write_deb(tmp_path / DEB, {"usr/share/other": b"1"})
    with pytest.raises(FetchError, match=r"dataset-fashion-mnist_1-1_all\.deb holds no file usr/share/wanted"):
        read_members(deb, ["usr/share/wanted"])


def test_a_link_in_a_package_is_no_file(tmp_path):
    deb = write_deb(tmp_path / DEB, {"usr/share/wanted": b"1"})
    assert read_members(deb, ["usr/share/*"]) == {"usr/share/wanted": b"1"}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "no package"])
@pytest.mark.parametrize("kind", ["deb", "whl"])
def test_a_damaged_package_is_refused(tmp_path, damage, kind):
    if kind == "deb":
        path = write_deb(tmp_path / DEB, fashion_files())
    else:
        path = write_wheel(tmp_path, "aeon", leaves_files())
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "changed": content[:middle] + bytes(64) + content[middle + 64 :],
            "empty": b"",
            "no package": b"<html>not found</html>",
        }[damage]
    )
    with pytest.raises(FetchError, match="download it again"):
        read_members(path, ["*.gz", "*.ts"])


@pytest.mark.parametrize("bad", ["cut off", "another kind"])
def test_damaged_images_are_named(run, tmp_path, bad):
    files = fashion_files()
    name = "usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz"
    files[name] = files[name][:500] if bad == "cut off" else files[name.replace("images-idx3", "labels-idx1")]
    result = run("fetch", "fashion", "--from", write_deb(tmp_path / DEB, files))
    assert result.exit_code == 1
    assert "the files are not what was expected: t10k-images" in result.output


def test_damaged_data_count_as_missing_and_are_fetched_again(run, tmp_path, cache):
    deb = write_deb(tmp_path / DEB, fashion_files())
    run("fetch", "fashion", "--from", deb)
    kept = cache / "fashion-mnist-1.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(TaskError, match="run `edge-client fetch fashion`"):
        load_task("fashion").train_data(Partition())
    assert run("fetch", "fashion", "--from", deb).exit_code == 0
    assert len(load_task("fashion").train_data(Partition())) == 60


def test_a_place_that_has_nothing_is_said(run, tmp_path):
    assert "does not exist" in run("fetch", "fashion", "--from", tmp_path / "nowhere").output
    result = run("fetch", "fashion", "--from", tmp_path)
    assert result.exit_code == 1
    assert "they are in the Debian package dataset-fashion-mnist" in result.output


def test_a_cache_that_cannot_be_written_is_said(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGENEWTON_CACHE", str(tmp_path / "file" / "cache"))
    result = run("fetch", "fashion", "--from", write_deb(tmp_path / DEB, fashion_files()))
    assert result.exit_code == 1
    assert "cannot be written" in result.output


def test_a_trained_model_recognises_where_there_are_no_data(run, tmp_path, cache):
    run("fetch", "leaves", "--from", write_wheel(tmp_path, "aeon", leaves_files()))
    model, sample = tmp_path / "leaves.pt", tmp_path / "leaf.csv"
    run("train", "-c", "task=leaves", "-c", "steps=2", "--output", model)
    label = load_task("leaves").save_sample(0, sample)
    (cache / "osu-leaf-1.safetensors").unlink()
    result = run("predict", model, sample)
    assert result.exit_code == 0, result.output
    assert label in result.output


def test_the_base_of_the_adapters_is_made_once_and_frozen(run, tmp_path, cache, monkeypatch):
    monkeypatch.setattr("edge_client.tasks.fashion.base._STEPS", 2)
    assert run("fetch", "fashion-lora", "--from", write_deb(tmp_path / DEB, fashion_files())).exit_code == 0
    base = cache / "fashion-vit-base-1.safetensors"
    first = base.read_bytes()
    base.unlink()
    run("fetch", "fashion-lora")  # the images are here
    assert base.read_bytes() == first
    task = load_task("fashion-lora")
    model = task.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samples = task.train_data(Partition())
    assert set(samples.targets.tolist()) == set(range(5))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        task.loss(model(samples.inputs), samples.targets).backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("output.") or ".up." in name or ".down." in name for name in changed)
