import os
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from coordinator.cli.commands import app
from coordinator.shipped import PACKAGES, PARTS

PROJECT = Path(__file__).parents[2]


def test_the_files_lie_as_in_a_checkout(tmp_path):
    folder = tmp_path / "files"
    assert CliRunner().invoke(app, ["files", str(folder)]).exit_code == 0
    for part in PARTS:
        assert (folder / part).exists(), part
    for package, place in PACKAGES.items():
        assert (folder / place / "__init__.py").is_file(), package
    assert os.access(folder / "docker" / "up", os.X_OK)
    assert not list(folder.rglob("__pycache__"))
    done = CliRunner().invoke(app, ["files", str(folder)])
    assert done.exit_code == 1
    assert f"{folder} is not an empty folder; name another one" in done.stderr


def test_the_wheel_carries_them():
    wheel = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    carried = {source for source in wheel["sources"] if source != "proto"} | wheel["force-include"].keys()
    assert carried == set(PARTS)
