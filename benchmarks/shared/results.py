"""What every benchmark leaves behind: a JSON file with its headline, its figures, and where they were measured."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parents[1] / "results"
_PACKAGES = ("torch", "flwr", "grpcio", "numpy")


def save_results(name: str, headline: dict[str, Any], figures: dict[str, Any], *packages: str) -> Path:
    """Write `benchmarks/results/NAME.json` and return its path.

    Args:
        name: of the benchmark.
        headline: the figures that the project quotes.
        figures: everything else that was measured.
        packages: whose versions matter, beside the usual ones.

    """
    content = {
        "headline": headline,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {package: version(package) for package in (*_PACKAGES, *packages)},
        **figures,
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def version_of(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine to judge its figures."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def markdown_table(header: list[str], rows: list[list[Any]]) -> str:
    """Return a table in Markdown; numbers stand to the right."""
    cells = [header, *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "| " + " | ".join(["-" * widths[0], *["-" * (width - 1) + ":" for width in widths[1:]]]) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])
