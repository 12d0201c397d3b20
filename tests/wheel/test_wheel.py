"""The wheel in fresh environments, as a user has it: each extra by itself, and everything from an empty folder."""

import email
import json
import os
import re
import stat
import urllib.request
import zipfile

import pytest

from benchmarks.shared.fresh_environment import sizes_mb
from benchmarks.shared.private_flower import RAY_DID_NOT_START, private_flower

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]

EVERYTHING = ("onnx", "recognition", "simulation", "tasks")


@pytest.fixture(scope="module")
def whole(installed):
    return installed(EVERYTHING)


@pytest.fixture(scope="module")
def models(whole):
    """Train in the empty folder, export, and return the installation that has the files."""
    printed = whole.ok("edge-client", "train", "-c", "steps=40", "--output", "model.pt")
    assert "40 steps" in printed
    whole.ok("edge-client", "export", "model.pt", "--format", "onnx", "--output", "model.onnx")
    save_sample(whole, "digits:DigitsTask", "digit.png")
    return whole


def save_sample(installation, task, name):
    module, _, kind = task.partition(":")
    make = f"from edge_client.tasks.{module} import {kind}; from pathlib import Path"
    installation.ok("python", "-c", f"{make}; {kind}().save_sample(3, Path({name!r}))")


def predicted(installation, model, *options):
    printed = installation.ok("edge-client", "predict", *options, model, "digit.png")
    (label, true_label) = re.search(r"digit\.png\W+(\d)\W+[\d.]+%\W+(\d)", printed).groups()
    assert label == true_label
    return label


def recognised(process, path):
    """Return what a server that says where it listens makes of a file."""
    for line in process.stdout:
        if found := re.search(r"REST on (\S+:\d+)", line):
            break
    request = urllib.request.Request(f"http://{found[1]}/recognize", path.read_bytes(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:
        return line, json.loads(response.read())["label"]


def test_metadata_links_and_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        told = email.message_from_bytes(archive.read(metadata))
        modes = {name: archive.getinfo(name).external_attr >> 16 for name in names}
    for package in ("edge_client", "coordinator", "edgenewton"):
        assert f"{package}/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {"Source", "Documentation", "Issues"} <= {line.partition(",")[0] for line in told.get_all("Project-URL")}
    assert told["Keywords"]
    assert "Typing :: Typed" in told.get_all("Classifier")
    readme = told.get_payload()
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert modes["coordinator/shipped_files/docker/up"] & stat.S_IXUSR
    assert not [name for name in names if "/docker/ca/" in name or ".fleet/" in name or "tests/" in name.split("/")[:1]]


def test_recognition_alone_needs_no_pytorch(installed, models):
    small = installed(("recognition",))
    sizes = sizes_mb(small.programs)
    assert not {"torch", "flwr", "grpcio", "pillow"} & sizes.keys()
    assert sum(sizes.values()) < 200
    save_sample(models, "motion:MotionTask", "motion.csv")
    models.ok("edge-client", "train", "-c", "task=motion", "-c", "steps=20", "--output", "motion.pt")
    models.ok("edge-client", "export", "motion.pt", "--format", "onnx", "--output", "motion.onnx")
    for name in ("motion.onnx", "motion.csv", "model.onnx", "digit.png", "model.pt"):
        (small.folder / name).write_bytes((models.folder / name).read_bytes())
    label = re.search(r"motion\.csv\W+(\w+)", models.ok("edge-client", "predict", "motion.pt", "motion.csv"))[1]
    assert (
        re.search(r"motion\.csv\W+(\w+)", small.ok("edge-client", "predict", "motion.onnx", "motion.csv"))[1] == label
    )
    imported = small.ok(
        "python",
        "-c",
        "import sys, edge_client; edge_client.Recognizer.load('motion.onnx').predict(['motion.csv']);"
        "print([name for name in ('torch', 'flwr', 'grpc', 'PIL', 'fastapi') if name in sys.modules])",
    )
    assert imported.strip() == "[]"
    process = small.start("edge-client", "serve", "motion.onnx", "--rest-port", "0")
    try:
        line, answer = recognised(process, small.folder / "motion.csv")
    finally:
        process.terminate()
        process.wait(30)
    assert answer == label
    assert "gRPC" not in line


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("edge-client", "train"), "training"),
        (("edge-client", "daemon"), "daemon"),
        (("edge-client", "status"), "daemon"),
        (("edge-client", "fetch"), "tasks"),
        (("edge-client", "tasks"), "training"),
        (("edge-client", "export", "model.pt"), "training"),
        (("edge-client", "evaluate", "model.pt"), "training"),
        (("edge-client", "predict", "model.pt", "digit.png"), "training"),
        (("edge-client", "predict", "model.onnx", "digit.png"), "images"),
        (("edge-coordinator", "serve"), "coordinator"),
        (("edge-coordinator", "--help"), "coordinator"),
    ],
)
def test_what_lacks_an_extra_names_it_in_a_sentence(installed, models, command, extra):
    small = installed(("recognition",))
    for name in ("model.onnx", "digit.png", "model.pt"):
        (small.folder / name).write_bytes((models.folder / name).read_bytes())
    done = small.run(*command)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.rstrip().endswith(f"pip install 'edgenewton[{extra}]'")


def test_images_and_grpc_beside_recognition(installed, models):
    camera = installed(("grpc", "images", "recognition"))
    for name in ("model.onnx", "digit.png"):
        (camera.folder / name).write_bytes((models.folder / name).read_bytes())
    label = predicted(camera, "model.onnx")
    process = camera.start("edge-client", "serve", "model.onnx", "--rest-port", "0", "--grpc-port", "0")
    try:
        line, answer = recognised(process, camera.folder / "digit.png")
    finally:
        process.terminate()
        process.wait(30)
    assert answer == label
    assert re.search(r"gRPC on 127\.0\.0\.1:\d+", line)


def test_all_from_an_empty_folder(models):
    label = predicted(models, "model.pt")
    assert predicted(models, "model.onnx") == label
    assert "accuracy" in models.ok("edge-client", "evaluate", "model.pt")
    process = models.start("edge-client", "serve", "model.pt", "--rest-port", "0", "--grpc-port", "0")
    try:
        _, answer = recognised(process, models.folder / "digit.png")
    finally:
        process.terminate()
        process.wait(30)
    assert answer == label


def test_the_files_of_the_docs(models):
    models.ok("edge-coordinator", "files", "beside")
    copied = models.folder / "beside"
    for name in (
        "docker/compose.yml",
        "docker/compose.metrics.yml",
        "docker/metrics/grafana/dashboards/fleet.json",
        "deploy/systemd/edge-client.service",
        "LICENSE",
        "constraints.txt",
        "edge_client/client_app.py",
        "coordinator/server_app.py",
        "proto/edgenewton/v1/wire.py",
    ):
        assert (copied / name).is_file(), name
    assert os.access(copied / "docker" / "up", os.X_OK)
    # What the Dockerfile copies and the context leaves in is there.
    for source in re.findall(
        r"^COPY (?!--from)(.+) \S+$", (copied / "docker" / "Dockerfile").read_text(), re.MULTILINE
    ):
        for part in source.split():
            assert (copied / part).exists(), part
    done = models.run("edge-coordinator", "files", "beside")
    assert done.returncode == 1
    assert "beside is not an empty folder" in done.stderr


TASK = '''
from edge_client.tasks.motion import MotionTask


class OwnTask(MotionTask):
    """Motions under a name of its own."""

    name = "own"
'''


def test_an_own_app_runs_in_flower(models, tmp_path):
    app = tmp_path / "own-app"
    (app / "own_app").mkdir(parents=True)
    (app / "own_app" / "__init__.py").write_text('"""An app of its own."""\n')
    (app / "own_app" / "task.py").write_text(TASK)
    (app / "own_app" / "server_app.py").write_text("from coordinator.server_app import app\n\n__all__ = ['app']\n")
    (app / "own_app" / "client_app.py").write_text("from edge_client.client_app import app\n\n__all__ = ['app']\n")
    models.ok("edge-coordinator", "files", tmp_path / "files")
    project = (tmp_path / "files" / "pyproject.toml").read_text()
    settings = project[
        project.index("[tool.flwr.app.config]") : project.index("# -----", project.index("[tool.flwr.app"))
    ]
    (app / "pyproject.toml").write_text(
        '[project]\nname = "own-app"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndescription = "own"\n\n'
        '[tool.flwr.app]\npublisher = "me"\n\n[tool.flwr.app.components]\n'
        'serverapp = "own_app.server_app:app"\nclientapp = "own_app.client_app:app"\n\n' + settings
    )
    chosen = {"task": "own_app.task:OwnTask", "devices": 2, "steps": 10, "rounds": 1, "output": tmp_path / "run"}
    chosen |= {"join-deadline-s": 240.0, "step-deadline-s": 120.0}  # the first start compiles what it imports
    permission = {"EDGENEWTON_ALLOW_TASK": "own_app.task:OwnTask"}
    with private_flower(tmp_path / "flower", models.programs, models.environment() | permission) as flower:
        for _ in range(2):
            output, _ = flower.run(chosen, 2, app=app).communicate(timeout=300)
            if RAY_DID_NOT_START not in output:
                break
    print(output)  # shown if something fails
    rounds = json.loads((tmp_path / "run" / "history.json").read_text())["rounds"]
    assert [entry["round"] for entry in rounds] == [1]
