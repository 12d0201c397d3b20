"""The name of a new project, and what follows from it: its package, its task's class, its variables."""

import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass

MAX_LENGTH = 32
"""Of an app's name in Flower."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*")


class ProjectNameError(ValueError):
    """A project cannot have this name; the text says why, and what it may be."""


@dataclass(frozen=True)
class ProjectName:
    """A name that Python, pip and Flower all accept.

    Args:
        text: letters, digits and single hyphens, such as `worn-bearings`.

    Raises:
        ProjectNameError: it is not of that form, too long, or its package's name is taken.

    """

    text: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.text):
            raise ProjectNameError(
                f"{self.text!r} cannot be a project's name: that begins with a letter, and has letters and digits, "
                f"with hyphens between them{self._better()}"
            )
        if len(self.text) > MAX_LENGTH:
            raise ProjectNameError(f"{self.text!r} has {len(self.text)} characters; a name has at most {MAX_LENGTH}")
        if keyword.iskeyword(self.package) or self.package in sys.stdlib_module_names:
            raise ProjectNameError(
                f"{self.package!r} is a word of Python; choose another name, such as {self.text}-app"
            )
        taken = importlib.util.find_spec(self.package)
        if taken is not None:
            raise ProjectNameError(
                f"a package {self.package!r} is there already ({taken.origin or 'a folder without __init__.py'}); "
                f"choose another name, such as {self.text}-app"
            )

    @property
    def package(self) -> str:
        """Name of the Python package, such as `worn_bearings`."""
        return self.text.lower().replace("-", "_")

    @property
    def task_class(self) -> str:
        """Name of the task's class, such as `WornBearingsTask`."""
        return "".join(part[0].upper() + part[1:] for part in self.text.split("-")) + "Task"

    @property
    def variable(self) -> str:
        """What its environment variables begin with, such as `WORN_BEARINGS`."""
        return self.package.upper()

    def _better(self) -> str:
        """Return a proposal, if the name can be mended."""
        words = re.findall(r"[A-Za-z0-9]+", self.text)
        proposal = "-".join(words).lstrip("0123456789-")
        return f"; {proposal!r} would do" if proposal else "; 'worn-bearings' would do"
