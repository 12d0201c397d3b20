import io
import math
from pathlib import Path

import pytest
from edgenewton.common.console import LineConsole, print_json
from rich.table import Table


class Terminal(io.StringIO):
    def isatty(self):
        return True


LONG = "/a folder [with] brackets/:key:/" + "x" * 300


@pytest.fixture
def printed(monkeypatch):
    """Return what a console prints to a file, or to a terminal of 40 columns."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def to(file, *things, **options):
        monkeypatch.setattr("sys.stdout", file)
        console = LineConsole()
        for thing in things:
            console.print(thing, **options)
        return file.getvalue()

    return to


def test_a_file_gets_whole_lines_as_they_are(printed):
    assert printed(io.StringIO(), f"saved as {LONG}", style="red") == f"saved as {LONG}\n"


def test_a_file_gets_whole_rows_and_no_padding(printed):
    table = Table("file", "label")
    table.add_row(LONG, "seven")
    lines = printed(io.StringIO(), table).splitlines()
    assert sum(LONG in line and "seven" in line for line in lines) == 1
    assert max(map(len, lines)) == len(LONG) + len("seven") + 7


def test_a_terminal_folds_by_itself_so_that_a_path_stays_whole(printed):
    assert printed(Terminal(), f"saved as {LONG}") == f"saved as {LONG}\n"


def test_a_file_has_no_colours_whoever_forces_them(printed, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in printed(io.StringIO(), "saved", style="red")


def test_numbers_that_json_does_not_know_are_null(capsys):
    print_json({"loss": math.nan, "curve": [(1, math.inf)], "path": Path("a/b")}, is_line=True)
    assert capsys.readouterr().out == '{"loss": null, "curve": [[1, null]], "path": "a/b"}\n'
