"""What both commands print with: for a person on a terminal, and line by line for a program or a file."""

from collections.abc import Callable
from typing import Any, Literal, NoReturn

import click
import typer
from rich.console import Console, ConsoleDimensions
from rich.text import Text
from typer.core import TyperCommand
from typer.models import CommandFunctionType

from edgenewton.common.extras import MissingExtraError

UNLIMITED = 1_000_000
"""Columns where there is no terminal: nothing is folded or cut."""


class LineConsole(Console):
    """Prints texts as they are. Where it does not print to a terminal, no line is folded or cut, whatever COLUMNS says.

    Args:
        stderr: whether it prints to standard error.
        markup: whether texts have Rich's markup. Paths and names may have brackets that are none.

    """

    def __init__(self, *, stderr: bool = False, markup: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=markup, emoji=False)

    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        """The terminal's size, or one without end."""
        size = super().size
        return size if self.file.isatty() else ConsoleDimensions(UNLIMITED, size.height)


out = LineConsole()
err = LineConsole(stderr=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print what is wrong, and end the command."""
    err.print(Text.assemble(("error", "bold red"), f": {message}"), soft_wrap=True)
    raise typer.Exit(code)


def warn(message: str) -> None:
    """Print what a person should know before anything else."""
    err.print(Text.assemble(("WARNING", "bold red"), f": {message}"), soft_wrap=True)


class _Command(TyperCommand):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MissingExtraError as error:
            fail(str(error))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help(ctx, formatter)
        # Typer escapes these brackets for its drawn help, in the plain one, too.
        formatter.buffer[:] = [text.replace("\\[", "[") for text in formatter.buffer]


class CommandLine(typer.Typer):
    """A command with subcommands. Its help and its errors have frames and colours on a terminal only."""

    def __init__(self, help: str) -> None:  # noqa: A002  # as Typer calls it
        self._markup_mode: Literal["markdown", "rich"] | None = None
        super().__init__(
            help=help,
            no_args_is_help=True,
            pretty_exceptions_show_locals=False,
            context_settings={"terminal_width": UNLIMITED},  # of the help without frames
        )

    def command(self, *args: Any, **settings: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Add a subcommand."""
        return super().command(*args, cls=_Command, **settings)

    @property
    def rich_markup_mode(self) -> Literal["markdown", "rich"] | None:
        """How Typer draws; None for plain text."""
        return self._markup_mode if out.file.isatty() and err.file.isatty() else None

    @rich_markup_mode.setter
    def rich_markup_mode(self, mode: Literal["markdown", "rich"] | None) -> None:
        self._markup_mode = mode

    @property
    def pretty_exceptions_enable(self) -> bool:
        """Whether the trace of an error that nobody foresaw is drawn."""
        return self._are_exceptions_pretty and err.file.isatty()

    @pretty_exceptions_enable.setter
    def pretty_exceptions_enable(self, is_enabled: bool) -> None:
        self._are_exceptions_pretty = is_enabled
