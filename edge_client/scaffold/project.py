"""Writes a new project from the files of `edge_client/scaffold/files`, in which `$name` and the like are filled in."""

import shutil
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from edge_client.scaffold.name import ProjectName

_SUFFIX = ".in"
"""Of files that are not what they look like until they are filled in, so that no tool takes them for it."""


def write_project(name: ProjectName, folder: Path, *, flower: bool) -> list[Path]:
    """Write a project into a new folder; return its files, relative to it.

    Args:
        name: of the project.
        folder: where; it must not be there yet.
        flower: whether it is a Flower app as well.

    Raises:
        FileExistsError: there is something at that place.
        OSError: it cannot be written; nothing of it is left.

    """
    content = {
        Path(place.replace("package", name.package, 1) if place.startswith("package/") else place): text
        for place, text in _filled_in(name, flower=flower).items()
    }
    folder.mkdir()
    try:
        for place, text in content.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(text, encoding="utf-8")
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return sorted(content)


def _filled_in(name: ProjectName, *, flower: bool) -> dict[str, str]:
    """Return the text of each file by its place."""
    root = files("edge_client.scaffold") / "files"
    templates = _templates(root / "common")
    parts = {"flower_settings": "", "flower_readme": "", "extras": "[recognition,training]"}
    if flower:
        templates |= _templates(root / "flower")
        parts = {
            "flower_settings": "\n" + templates.pop("settings.toml"),
            "flower_readme": "\n" + templates.pop("readme.md"),
            "extras": "[recognition,simulation,training]",
        }
    known = {
        "name": name.text,
        "package": name.package,
        "task_class": name.task_class,
        "variable": name.variable,
        "version": version("edgenewton"),
    }
    parts = {key: Template(text).substitute(known) for key, text in parts.items()}
    return {place: Template(text).substitute(known | parts) for place, text in templates.items()}


def _templates(folder: Traversable, below: str = "") -> dict[str, str]:
    """Return the files in a folder of the package, by their places below it."""
    found: dict[str, str] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _templates(entry, f"{below}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            found[below + entry.name.removesuffix(_SUFFIX)] = entry.read_text(encoding="utf-8")
    return found
