import io
import re

import pytest
from edgenewton.common.console import LineConsole
from edgenewton.common.tables import Column, Table, shortened
from rich.cells import cell_len


def printed(table, width, monkeypatch):
    """Return the lines of a table in a terminal of so many columns, or in a file if that is None."""
    file = io.StringIO()
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        file.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", file)
    LineConsole().print(table)
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()


def fleet(*names):
    table = Table(Column("device", is_name=True), "state", Column("sent", rank=2), Column("lag", rank=1))
    for name in names:
        table.add(name, "training", "12.34 MB", "0.25 s")
    return table


ALIKE = [f"gateway-of-the-northern-warehouse-on-the-second-floor-{number}" for number in (1, 2)]


def test_what_has_room_is_shown_as_it_is(monkeypatch):
    for width in (None, 120):
        text = "\n".join(printed(fleet(*ALIKE), width, monkeypatch))
        assert all(name in text for name in ALIKE)
        assert text.count("12.34 MB") == 2


def test_names_lose_their_middle_and_can_be_told_apart(monkeypatch):
    lines = printed(fleet(*ALIKE), 60, monkeypatch)
    assert max(map(len, lines)) <= 60
    (first,), (second,) = ([line for line in lines if f"floor-{number} " in line] for number in (1, 2))
    assert first != second
    assert "gateway-of" in first
    assert "…" in first
    assert "12.34 MB" in first


def test_columns_go_by_rank_and_are_named(monkeypatch):
    lines = printed(fleet(*ALIKE), 45, monkeypatch)
    assert max(map(len, lines)) <= 45
    assert not any("MB" in line for line in lines)
    assert sum("0.25 s" in line for line in lines) == 2
    assert lines[-1] == "not shown, for lack of room: sent"


def test_rows_become_blocks_where_nothing_else_does(monkeypatch):
    lines = printed(fleet(*ALIKE), 20, monkeypatch)
    assert [line for line in lines if line.startswith("device  ")] == [f"device  {name}" for name in ALIKE]
    assert lines.count("sent    12.34 MB") == 2


def test_a_path_is_neither_cut_nor_folded(monkeypatch):
    path = "/a/folder/with a blank/" + "x" * 200
    table = Table("file", "label")
    table.add(path, "seven")
    assert printed(table, 80, monkeypatch) == [f"file   {path}", "label  seven"]


def test_different_names_are_never_shortened_to_the_same():
    names = ["a" * 20 + middle + "b" * 20 for middle in "xy"]
    assert shortened(names, 20) is None
    assert shortened(names[:1] * 2, 9) == ["aaaa…bbbb"] * 2
    assert cell_len(shortened(["漢字" * 10], 10)[0]) <= 10


def test_a_row_has_as_many_cells_as_there_are_columns():
    with pytest.raises(ValueError, match="the row has 1 cells, and the table 2 columns"):
        Table("one", "two").add("1")
