"""Runs the registries' clients, apt-get and pip, within a deadline, and says what to do when they fail."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge_client.tasks.packages.errors import FetchError

_OFFLINE = "or download it elsewhere and name the file with --from"
_LAST_LINES = 3
_END_S = 5


def download_debian(package: str, folder: Path, deadline_s: float) -> Path:
    """Download a package of Debian into a folder, without root and without installing it; return its file.

    Raises:
        FetchError: there is no apt-get here, it knows no such package, or it failed or took too long.

    """
    tool = shutil.which("apt-get")
    if tool is None:
        raise FetchError(f"{package} is a package of Debian, and there is no apt-get here; {_elsewhere('.deb')}")
    hint = f"run `apt-get update` as root and try again, {_OFFLINE}"
    # Its own user may not write to a private folder, which it would otherwise warn of.
    command = [tool, "-q", "-o", "Dpkg::Use-Pty=0", "-o", "APT::Sandbox::User=", "download", package]
    _run(command, package, folder, deadline_s, hint)
    return _only(folder, package, ".deb")


def download_wheel(package: str, folder: Path, deadline_s: float) -> Path:
    """Download a package of Python into a folder, without its dependencies and without installing it; return its file.

    Raises:
        FetchError: pip is not installed, there is no such package, or it failed or took too long.

    """
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:", "--dest", "."]
    command = [sys.executable, "-m", "pip", "download", *options, package]
    _run(command, package, folder, deadline_s, f"see that pip works here and reaches its index, {_OFFLINE}")
    return _only(folder, package, ".whl")


def _run(command: Sequence[str], package: str, folder: Path, deadline_s: float, hint: str) -> None:
    tool = "pip" if "pip" in command else "apt-get"
    with tempfile.TemporaryFile() as output:
        # Into a file: a grandchild that outlives its parent would keep a pipe open.
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
        )
        try:
            status = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise FetchError(
                f"{tool} did not download {package} in {deadline_s:g} s; allow it more with --deadline-s, {_OFFLINE}"
            ) from None
        finally:
            _end(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = " | ".join(lines[-_LAST_LINES:]) or f"status {status}"
        raise FetchError(f"{tool} cannot download {package} ({said}); {hint}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(_END_S)


def _only(folder: Path, package: str, suffix: str) -> Path:
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) != 1:
        raise FetchError(f"the download of {package} left {len(found)} files {suffix}; 1 was expected")
    return found[0]


def _elsewhere(suffix: str) -> str:
    return f"download its {suffix} on another machine (packages.debian.org has it) and name the file with --from"
