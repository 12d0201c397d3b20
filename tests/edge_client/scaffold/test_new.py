"""`edge-client new`: the project that it writes runs, and what cannot be written is said."""

import sys
import tomllib
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from typer.testing import CliRunner

from coordinator.flower.bundle import bundled_homes
from coordinator.flower.run_config import split_run_config
from edge_client.cli import app
from edge_client.scaffold import ProjectName, ProjectNameError
from edge_client.training.settings import check_settings, setting_names

REPOSITORY = Path(__file__).parents[3]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A new Flower app in the working directory, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    run("new", "worn-bearings", "--flower")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path / "worn-bearings"
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("worn_bearings", "test_task", "test_flower_app"):
            del sys.modules[name]


def test_its_own_tests_pass(project, monkeypatch):
    monkeypatch.chdir(project)
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:timeout"]) == 0


def test_it_trains_and_recognises_as_its_readme_says(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    monkeypatch.setenv("EDGENEWTON_ALLOW_TASK", "worn_bearings.task:WornBearingsTask")
    (project / "reading.csv").write_text("0,0,0,0,0,0,0,0\n")
    run("train", "-c", "task=worn_bearings.task:WornBearingsTask", "-c", "steps=5", "--output", "model.pt")
    assert "reading.csv" in run("predict", "model.pt", "reading.csv")
    rows = [f"{','.join(map(str, range(8)))},{label}" for label in ("blocked", "normal", "worn") for _ in range(5)]
    (project / "own.csv").write_text("\n".join(["a,b,c,d,e,f,g,h,label", *rows]))
    monkeypatch.setenv("WORN_BEARINGS_DATA", "own.csv")
    assert "on 3 samples" in run("evaluate", "model.pt")


def test_flower_accepts_it_without_a_warning_and_it_has_all_settings(project):
    config, warnings = load_and_validate(project / "pyproject.toml")
    assert warnings == []
    settings = config["tool"]["flwr"]["app"]["config"]
    ours = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    changed = {"devices": 2, "task": "worn_bearings.task:WornBearingsTask"}
    assert settings == ours | changed
    _, of_devices = split_run_config(settings)
    assert set(of_devices) == set(setting_names())
    check_settings(of_devices)


def test_a_project_without_flower_has_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = run("new", "Valves2")
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "Valves2/" + path
        for path in (
            ".gitignore",
            "README.md",
            "pyproject.toml",
            "tests/test_task.py",
            "valves2/__init__.py",
            "valves2/task.py",
        )
    }
    assert all(path in told for path in written)
    text = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".gitignore")
    assert "flower" not in text.lower()
    assert "class Valves2Task(" in text
    assert "$" not in text.replace("${", "")


def test_what_runs_leave_is_not_bundled_unless_it_is_a_home_with_another_name(project, monkeypatch):
    def home(place):
        (project / place / "apps" / "me.x").mkdir(parents=True)
        (project / place / "config.toml").write_text('[superlink]\ndefault = "local"\n')
        (project / place / "apps" / "me.x" / "old.py").touch()

    clean = build_fab_from_disk(project)
    home("flower-home")
    home("runs/home")
    assert build_fab_from_disk(project) == clean
    home("elsewhere")
    assert len(build_fab_from_disk(project)) > len(clean)

    monkeypatch.setenv("FLWR_HOME", str(project.parent / "home"))
    installed = project.parent / "home" / "apps" / "me.worn-bearings"
    (installed / "elsewhere").mkdir(parents=True)
    assert bundled_homes([str(installed), "/usr/lib"]) == []
    (installed / "elsewhere" / "config.toml").write_text('[superlink]\ndefault = "local"\n')
    (installed / "config.toml").write_text("[other]\n")
    assert bundled_homes([str(installed), "/usr/lib"]) == [Path("elsewhere")]


def test_a_home_inside_the_new_folder_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", "valves/home")
    assert "FLWR_HOME is valves/home, inside valves" in run("new", "valves", "--flower")
    assert "FLWR_HOME" not in run("new", "pumps", "--flower")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2 valves", "'2 valves' cannot be a project's name: that begins with a letter"),
        ("my_valves", "'my-valves' would do"),
        ("../valves", "'valves' would do"),
        ("---", "'worn-bearings' would do"),
        ("v" * 33, "has 33 characters; a name has at most 32"),
        ("class", "'class' is a word of Python; choose another name, such as class-app"),
        ("JSON", "'json' is a word of Python"),
        ("edge-client", "a package 'edge_client' is there already"),
        ("there", "there exists already; choose another name, or remove it"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_the_way_out(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert message in run("new", "--", name, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == "task.py":
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    assert "cannot be written: No space left on device" in run("new", "valves", code=1)
    assert list(tmp_path.iterdir()) == []


def test_names_that_follow():
    name = ProjectName("Worn-bearings-2b")
    assert (name.package, name.task_class, name.variable) == (
        "worn_bearings_2b",
        "WornBearings2bTask",
        "WORN_BEARINGS_2B",
    )
    with pytest.raises(ProjectNameError):
        ProjectName("")
