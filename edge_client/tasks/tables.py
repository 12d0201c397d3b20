"""Reads tables that come from outside, CSV and NPZ, and says in a sentence what is wrong with them."""

import csv
import io
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.errors import SampleError

MAX_BYTES = 1 << 30
"""Larger files are refused before they are read."""


def real_numbers(array: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return an array's numbers.

    Raises:
        SampleError: some are not finite, or not real.

    """
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise SampleError("the array holds NaN, infinity, or no real numbers")
    return array.astype(np.float32)


def label_in_first_line(sample: object, labels: Collection[str]) -> str | None:
    """Return the label that a CSV file carries as the comment in its first line, if it carries one."""
    if not isinstance(sample, (str, Path)):
        return None
    with Path(sample).open(errors="replace") as file:
        label = file.readline().removeprefix("#").strip()
    return label if label in labels else None


def read_rows(source: Path | bytes) -> list[list[str]]:
    """Return the rows of a CSV file, or of the bytes of one, without empty lines and lines that begin with #.

    Raises:
        SampleError: the file is missing, empty, too large or no text.

    """
    name = name_of(source)
    try:
        if isinstance(source, Path) and source.stat().st_size > MAX_BYTES:
            raise SampleError(f"{name} has more than {MAX_BYTES:,} bytes")
        text = (source if isinstance(source, bytes) else source.read_bytes()).decode("utf-8-sig")
        lines = (line for line in io.StringIO(text, newline="") if line.strip() and not line.startswith("#"))
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    except FileNotFoundError:
        raise SampleError(f"{name} does not exist") from None
    except OSError as error:
        raise SampleError(f"{name} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SampleError(f"{name} is not a table that can be read (CSV): {error}") from None
    if not rows:
        raise SampleError(f"{name} is empty; a table was expected")
    return rows


def read_numbers(source: Path | bytes) -> NDArray[np.float32]:
    """Return a CSV file of numbers as float32 `[rows, columns]`; a first line of names is skipped.

    Raises:
        SampleError: as `read_rows`, or a cell is no finite number; the text says where.

    """
    rows = read_rows(source)
    has_header = not any(_is_number(cell) for cell in rows[0])
    return to_numbers(rows[has_header:], name_of(source), first_line=1 + has_header)


def to_numbers(rows: Iterable[list[str]], name: str, first_line: int = 1) -> NDArray[np.float32]:
    """Return rows of texts as finite numbers, float32 `[rows, columns]`.

    Raises:
        SampleError: a cell is no finite number, or the rows differ in length; the text says where.

    """
    numbers: list[list[float]] = []
    for line, row in enumerate(rows, first_line):
        for column, cell in enumerate(row, 1):
            if not (_is_number(cell) and np.isfinite(np.float32(cell))):
                raise SampleError(f"{name}: row {line}, column {column} holds {cell!r}, no finite number")
        if numbers and len(row) != len(numbers[0]):
            raise SampleError(f"{name}: row {line} has {len(row)} columns, those before it {len(numbers[0])}")
        numbers.append([float(cell) for cell in row])
    if not numbers:
        raise SampleError(f"{name} has no rows")
    return np.array(numbers, dtype=np.float32)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an NPZ file; one with Python objects is refused, since it could run code.

    Raises:
        SampleError: the file is missing, damaged, or holds objects.

    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise SampleError(f"{path} does not exist") from None
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise SampleError(f"{path} is not an NPZ file of plain arrays: {error}") from None


def name_of(source: Path | bytes) -> str:
    """Return what messages call a file."""
    return "the table" if isinstance(source, bytes) else str(source)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
