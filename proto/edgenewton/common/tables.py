"""Tables that stay readable in a narrow terminal: names lose their middle, columns go, or rows become blocks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

SHORTEST = 16
"""Columns of the screen that a shortened cell keeps at least."""
_GAP = "…"
_BORDERS = 3
"""Columns of the screen that each column's borders and padding take, and one more for all."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    rank: int = 0
    """Where there is too little room, the columns of the highest rank go first; those of rank 0 stay."""
    is_right: bool = False
    """Whether it is aligned at the right, as numbers are."""
    is_name: bool = False
    """Whether its cells may lose their middle, as long as they can be told apart. Paths may not."""


class Table:
    """Rows of texts below columns.

    As wide as it needs to be where there is room. Else names lose their middle, then columns go, from the highest rank
    on, and a line below names them; if that does not do, each row is printed as a block of lines. Nothing is folded.
    """

    def __init__(self, *columns: Column | str) -> None:
        self._columns = [Column(column) if isinstance(column, str) else column for column in columns]
        self._rows: list[tuple[list[str], str]] = []

    def add(self, *cells: str, style: str = "") -> None:
        """Add a row.

        Raises:
            ValueError: there are more cells than columns, or fewer.

        """
        if len(cells) != len(self._columns):
            raise ValueError(f"the row has {len(cells)} cells, and the table {len(self._columns)} columns")
        self._rows.append((list(cells), style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw it as Rich asks for it."""
        # What goes first stands last.
        to_go = sorted(
            (i for i, column in enumerate(self._columns) if column.rank), key=lambda i: self._columns[i].rank
        )
        gone: list[int] = []
        while True:
            shown = [i for i in range(len(self._columns)) if i not in gone]
            cells = self._fitted(shown, options.max_width)
            if cells is not None:
                yield self._drawn(shown, cells)
                if gone:
                    names = ", ".join(self._columns[i].name for i in sorted(gone))
                    yield Text(f"not shown, for lack of room: {names}", style="dim", no_wrap=True, overflow="ignore")
                return
            if not to_go:
                yield from self._blocks()
                return
            gone.append(to_go.pop())

    def _fitted(self, shown: Sequence[int], width: int) -> list[list[str]] | None:
        """Return the cells of each column, as they fit into so many columns of the screen; None if they do not."""
        columns = [[row[i] for row, _ in self._rows] for i in shown]
        headings = [cell_len(self._columns[i].name) for i in shown]
        widths = [max([least, *map(cell_len, cells)]) for least, cells in zip(headings, columns, strict=True)]
        least = [max(SHORTEST, heading) for heading in headings]
        names = [at for at, i in enumerate(shown) if self._columns[i].is_name]
        while sum(widths) > width - _BORDERS * len(shown) - 1:
            at = max(names, key=lambda at: widths[at] - least[at], default=None)
            if at is None or widths[at] <= least[at]:
                return None
            widths[at] -= 1
        fitted = []
        for at, cells in enumerate(columns):
            short = shortened(cells, widths[at]) if at in names else cells
            if short is None:
                return None
            fitted.append(short)
        return fitted

    def _drawn(self, shown: Sequence[int], cells: Sequence[Sequence[str]]) -> RichTable:
        table = RichTable()
        for i in shown:
            column = self._columns[i]
            table.add_column(Text(column.name), justify="right" if column.is_right else "left", no_wrap=True)
        for number, (_, style) in enumerate(self._rows):
            table.add_row(*(Text(column[number]) for column in cells), style=style)
        return table

    def _blocks(self) -> Iterator[Text]:
        width = max((cell_len(column.name) for column in self._columns), default=0)
        for number, (cells, style) in enumerate(self._rows):
            if number:
                yield Text("")
            for column, cell in zip(self._columns, cells, strict=True):
                if cell:
                    name = column.name + " " * (width - cell_len(column.name))
                    yield Text.assemble((name, "bold"), f"  {cell}", style=style, no_wrap=True, overflow="ignore")


def properties(rows: Iterable[tuple[str, str]]) -> Text:
    """Return names with their values, a line each, which a terminal folds where it must."""
    rows = list(rows)
    width = max((cell_len(name) for name, _ in rows), default=0)
    lines = [Text.assemble((name + " " * (width - cell_len(name)), "bold"), f"  {value}") for name, value in rows]
    return Text("\n").join(lines)


def shortened(texts: Sequence[str], width: int) -> list[str] | None:
    """Return texts without their middle where they are too wide; None if different ones would look the same.

    Args:
        texts: of one line each.
        width: columns of the screen that each may take.

    """
    short = {text: _without_middle(text, width) for text in texts}
    return [short[text] for text in texts] if len(set(short.values())) == len(short) else None


def _without_middle(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    tail = (width - 1) // 2
    return chop_cells(text, width - 1 - tail)[0] + _GAP + chop_cells(text[::-1], tail)[0][::-1]
