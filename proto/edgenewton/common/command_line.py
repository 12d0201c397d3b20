"""Commands with subcommands: their help, their `--version`, and what they say to what is misspelt."""

import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import click
import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo, CommandFunctionType

from edgenewton.common.console import UNLIMITED, err, fail
from edgenewton.common.extras import MissingExtraError
from edgenewton.common.suggestions import suggestion
from edgenewton.common.version import version

WIDEST = 110
"""Columns of a terminal that help takes at most: longer lines are hard to read."""


class HelpFormatter(click.HelpFormatter):
    """Writes help as wide as the terminal, and without folding it where there is none."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None) -> None:  # noqa: ARG002
        self._is_drawn = sys.stdout.isatty()
        columns = UNLIMITED
        if self._is_drawn:
            columns = min(WIDEST, os.get_terminal_size(sys.stdout.fileno()).columns or 80) - 1
        super().__init__(indent_increment, columns)

    def write_heading(self, heading: str) -> None:
        """Write a section's name."""
        super().write_heading(click.style(heading, bold=True) if self._is_drawn else heading)


class HelpContext(click.Context):
    """Where a command is run, with our help."""

    formatter_class = HelpFormatter


class Command(TyperCommand):
    """A subcommand. Its options stand in sections, by their `rich_help_panel`."""

    context_class = HelpContext

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        told = _told_of_arguments(self.callback) if self.callback is not None else {}
        for parameter in self.params:
            # Click 8.5 takes from Typer's arguments what they say of themselves.
            if isinstance(parameter, click.Argument) and not getattr(parameter, "help", None):
                parameter.help = told.get(parameter.name or "")  # type: ignore[attr-defined, unused-ignore]

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what is not installed is an error in a sentence."""
        try:
            return super().invoke(ctx)
        except MissingExtraError as error:
            fail(str(error))

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: they are among the sections, whatever Click's version."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments and options, by section."""
        write_sections(self, ctx, formatter)


class Group(TyperGroup):
    """A command with subcommands."""

    context_class = HelpContext

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: they are among the sections, whatever Click's version."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write options and subcommands."""
        write_sections(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the subcommands, each with the first paragraph of its help."""
        commands = [command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name)) is not None]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (command.name or "", inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " "))
                    for command in commands
                    if not command.hidden
                ]
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand; one that there is not leads to those that are spelt nearly so."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}{suggestion(args[0], self.list_commands(ctx)) or '.'}")
        return super().resolve_command(ctx, args)


def write_sections(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write a command's arguments and options, by section."""
    sections: dict[str, list[tuple[str, str]]] = defaultdict(list, {"Arguments": [], "Options": []})
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            # Typer escapes brackets for Rich's markup, which this is none of.
            name, text = (part.replace("\\[", "[") for part in record)
            sections[getattr(parameter, "rich_help_panel", None) or kind].append((name, text))
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _told_of_arguments(callback: Callable[..., Any]) -> dict[str, str | None]:
    """Return what a command's function says of its arguments, in their annotations."""
    hints = get_type_hints(inspect.unwrap(callback), include_extras=True)
    return {
        name: part.help
        for name, hint in hints.items()
        for part in getattr(hint, "__metadata__", ())
        if isinstance(part, ArgumentInfo)
    }


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs; what is for people goes to stderr.")]


def _print_version(ctx: click.Context, is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"{ctx.find_root().info_name} {version()}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the release, and end."),
]


class CommandLine(typer.Typer):
    """A command with subcommands.

    Args:
        help: what it is for.
        has_version: whether it has `--version`; commands within another have none.

    """

    def __init__(self, help: str, *, has_version: bool = True) -> None:  # noqa: A002  # as Typer calls it
        super().__init__(
            cls=Group,
            help=help,
            no_args_is_help=True,
            pretty_exceptions_show_locals=False,
            rich_markup_mode=None,  # it takes what stands in brackets for markup, and breaks paths in its frames
        )
        if has_version:
            self.callback()(_take_version)

    def command(self, *args: Any, **settings: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Add a subcommand."""
        return super().command(*args, **({"cls": Command} | settings))

    @property
    def pretty_exceptions_enable(self) -> bool:
        """Whether the trace of an error that nobody foresaw is drawn."""
        return self._are_exceptions_pretty and err.is_terminal

    @pretty_exceptions_enable.setter
    def pretty_exceptions_enable(self, is_enabled: bool) -> None:
        self._are_exceptions_pretty = is_enabled


def _take_version(is_version_asked: Version = False) -> None:
    pass
