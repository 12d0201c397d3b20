"""Builds the wheel, and installs it into environments of its own, as a user does."""

import os
import runpy
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
_INSTALLER = PROJECT / "docker" / "image" / "install-packages"
_DEADLINE_S = 900


class InstallError(RuntimeError):
    """The wheel cannot be built or installed; the text ends with what the installer said."""


def build_wheel(folder: Path) -> Path:
    """Return the wheel of this checkout, built in `folder`.

    Raises:
        InstallError: it cannot be built.

    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*command, f"--wheel-dir={folder}", str(PROJECT)])
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, extras: str, folder: Path, *, is_compiled: bool = True) -> Path:
    """Install the wheel with extras, such as "recognition,images", into a fresh environment; return its programs.

    Everything comes in the versions of constraints.txt; in the environment there is nothing else, not even pip.

    Args:
        wheel: what `build_wheel` made.
        extras: with commas between them; empty for none.
        folder: where the environment is to be.
        is_compiled: whether all files are compiled, as pip leaves them, or those that are used, when they are.

    Raises:
        InstallError: it cannot be installed.

    """
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    installer = runpy.run_path(str(_INSTALLER))
    listed = _run([sys.executable, "-m", "pip", "config", "list"])
    options = installer["uv_options"](installer["pip_settings"](listed), os.environ.get("TORCH_BACKEND"))
    what = f"edgenewton[{extras}] @ {wheel.as_uri()}" if extras else str(wheel)
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "install", "--quiet", f"--python={folder / 'bin' / 'python'}"]
    command += ["--compile-bytecode"] if is_compiled else []
    _run([*command, f"--constraint={PROJECT / 'constraints.txt'}", *options, what])
    return folder / "bin"


def sizes_mb(programs: Path) -> dict[str, float]:
    """Return what each package of an environment takes on disk, compiled files included, in MB (10^6 bytes)."""
    (packages,) = programs.parent.glob("lib/python3*/site-packages")
    return {_name(found): _bytes(found) / 1e6 for found in distributions(path=[str(packages)])}


def _name(found: Any) -> str:
    return str(found.metadata["Name"])


def _bytes(found: Any) -> int:
    paths = (Path(found.locate_file(file)) for file in found.files or ())
    listed = {path.resolve() for path in paths if path.is_file()}
    # Those that compile a file need not list what they make.
    compiled = {
        cached
        for path in listed
        if path.suffix == ".py"
        for cached in (path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")
    }
    return sum(path.stat().st_size for path in listed | compiled)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    if done.returncode:
        raise InstallError(f"{' '.join(command[:5])} ... failed: {done.stderr[-2000:]}")
    return done.stdout
