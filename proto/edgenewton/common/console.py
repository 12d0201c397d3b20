"""What both commands print with: for a person on a terminal, and line by line for a program or a file."""

import json
import math
from typing import Any, NoReturn

import typer
from rich.console import Console, ConsoleDimensions
from rich.text import Text

from edgenewton.common.tables import Table

UNLIMITED = 1_000_000
"""Columns where there is no terminal: nothing is folded or cut."""


class LineConsole(Console):
    """Prints texts as they are: a terminal folds what is too long, and what is copied from it has no line break.

    Where it does not print to a terminal, nothing is folded, cut or coloured, whatever COLUMNS and FORCE_COLOR say.

    Args:
        stderr: whether it prints to standard error.
        markup: whether texts have Rich's markup. Paths and names may have brackets that are none.

    """

    def __init__(self, *, stderr: bool = False, markup: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=markup, emoji=False)

    @property
    def is_terminal(self) -> bool:
        """Whether a person sees it."""
        return self.file.isatty()

    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        """The terminal's size, or one without end."""
        size = super().size
        return size if self.is_terminal else ConsoleDimensions(UNLIMITED, size.height)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Rich does, but for texts, which are not folded, and tables, which know how to become narrower."""
        if objects and all(isinstance(thing, str | Text) for thing in objects):
            options = {"soft_wrap": True} | options
        elif any(isinstance(thing, Table) for thing in objects):
            options = {"crop": False} | options
        super().print(*objects, **options)


out = LineConsole()
err = LineConsole(stderr=True)


def print_json(value: Any, *, is_line: bool = False) -> None:
    """Print a value to standard output as JSON, for programs; numbers that are not finite become null.

    Args:
        value: of what JSON knows, and dataclasses, paths and the like, which become texts.
        is_line: whether it is one line of many.

    """
    typer.echo(json.dumps(finite(value), ensure_ascii=False, indent=None if is_line else 2, default=str))


def finite(value: Any) -> Any:
    """Return a value of JSON with null in place of numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(of_key) for key, of_key in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fail(message: str, code: int = 1) -> NoReturn:
    """Print what is wrong, and end the command."""
    err.print(Text.assemble(("error", "bold red"), f": {message}"))
    raise typer.Exit(code)


def warn(message: str) -> None:
    """Print what a person should know before anything else."""
    err.print(Text.assemble(("WARNING", "bold red"), f": {message}"))
