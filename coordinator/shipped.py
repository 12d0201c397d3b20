"""Files beside the code that the wheel carries: compose files, the unit of systemd, dashboards of Grafana.

What is copied out is laid out as a checkout is, with the code, so that the docs' commands work in it: `docker/build`
builds the image there, and `flwr run` finds the app.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

PARTS = (
    ".dockerignore",
    "LICENSE",
    "README.md",
    "benchmarks/shared/link_rate.py",
    "benchmarks/shared/tcp_proxy.py",
    "constraints.txt",
    "deploy",
    "docker",
    ".ci/hatch_build.py",
    "pyproject.toml",
)
"""As a checkout has them; pyproject.toml puts them into the wheel."""
PACKAGES = {"coordinator": "coordinator", "edge_client": "edge_client", "edgenewton": "proto/edgenewton"}
"""The packages, and where a checkout has them."""
_HERE = Path(__file__).parent
_NOT_SHIPPED = ("__pycache__", "*.py[cod]", "shipped_files", ".fleet", "ca")


class ShippedFilesError(RuntimeError):
    """The files cannot be copied; the text names the folder, and says why."""


def copy_shipped(folder: Path) -> None:
    """Copy the files, and the packages, into a new or empty folder.

    Raises:
        ShippedFilesError: the folder holds something, or cannot be written.

    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ShippedFilesError(f"{folder} is not an empty folder; name another one")
        folder.mkdir(parents=True, exist_ok=True)
        source = _source()
        for part in PARTS:
            _copy(source / part, folder / part)
        for package, place in PACKAGES.items():
            _copy(_package(package), folder / place)
    except OSError as error:
        raise ShippedFilesError(f"{folder} cannot be written: {error.strerror or error}") from None


def _source() -> Path:
    installed = _HERE / "shipped_files"
    return installed if installed.is_dir() else _HERE.parent  # a checkout, installed in editable mode


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ShippedFilesError(f"the package {name!r} is not installed beside the coordinator")
    return Path(next(iter(spec.submodule_search_locations)))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NOT_SHIPPED))
    else:
        shutil.copy2(source, target)
