import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.shared.fresh_environment import build_wheel, install


class Installation:
    """An environment with the wheel alone, and an empty folder in which its commands run."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs = programs
        self.folder = folder

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGENEWTON"))}
        path = f"{self.programs}{os.pathsep}{kept.get('PATH', '')}"
        return kept | {"PATH": path, "OMP_NUM_THREADS": "1", "HOME": str(self.folder.parent)}

    def run(self, command: str, *arguments: object, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.programs / command, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ok(self, command: str, *arguments: object, timeout: float = 120) -> str:
        done = self.run(command, *arguments, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, command: str, *arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.programs / command, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """Return a function that installs the wheel with extras, once for each choice of them."""
    made: dict[str, Installation] = {}

    def of(extras: Sequence[str]) -> Installation:
        name = ",".join(extras)
        if name not in made:
            root = tmp_path_factory.mktemp(f"installed-{len(made)}")
            (root / "empty").mkdir()
            programs = install(wheel, name, root / "environment", is_compiled=name == "recognition")
            made[name] = Installation(programs, root / "empty")
        return made[name]

    return of
