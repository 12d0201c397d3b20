"""Seals of the rows of an SQLite database: a table `seals` has the digest of every row of every other table.

SQLite notices damage to a page's structure, not to a value in it. Triggers keep the seals up to date in the same
transaction as the rows, so that who writes rows need not know of them. A row without a seal, a seal without a row, and
a row that does not fit its seal are damage.
"""

import hashlib
import json
import sqlite3
import struct
from pathlib import Path

from edgenewton.common.sealed_file import DamagedError

TABLE = "seals"
_SCHEMA = f"CREATE TABLE IF NOT EXISTS {TABLE} (of TEXT, key TEXT, seal TEXT, PRIMARY KEY (of, key)) WITHOUT ROWID"
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR_READ", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_DATA")
"""Names of SQLite's errors, or what they begin with, that say that a file is damaged."""

Value = None | int | float | str | bytes


def open_to_read(path: Path) -> sqlite3.Connection:
    """Return a database that another process may be writing, also on a disk that cannot be written, and damaged ones.

    Raises:
        sqlite3.Error: it cannot be opened.

    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    database = sqlite3.connect(address, uri=True)
    try:
        database.execute("PRAGMA user_version")
    except sqlite3.OperationalError as error:
        database.close()
        log = Path(f"{path}-wal")
        # Without write access SQLite cannot make the file by which readers and writers know of each other.
        if error.sqlite_errorname != "SQLITE_CANTOPEN" or not path.exists() or (log.exists() and log.stat().st_size):
            raise
        return sqlite3.connect(f"{address}&immutable=1", uri=True)
    except sqlite3.DatabaseError:
        pass  # it is damaged, and is found so when it is checked
    return database


def row_seal(*values: Value) -> str:
    """Return the SHA-256 of a row, in hexadecimal: of each value its type, its length in bytes, and its bytes."""
    digest = hashlib.sha256()
    for value in values:
        match value:
            case None:
                kind, data = b"n", b""
            case float():
                kind, data = b"f", struct.pack(">d", value)
            case int():
                kind, data = b"i", str(value).encode()
            case str():
                kind, data = b"s", value.encode()
            case _:
                kind, data = b"b", value
        digest.update(b"%s%d:%s" % (kind, len(data), data))
    return digest.hexdigest()


def row_key(*values: Value) -> str:
    """Return the primary key of a row as text."""
    return json.dumps(values)


def add_functions(database: sqlite3.Connection) -> None:
    """Let a connection write to a database whose rows have seals."""
    database.create_function("edgenewton_key", -1, row_key, deterministic=True)
    database.create_function("edgenewton_seal", -1, row_seal, deterministic=True)


def watch_rows(database: sqlite3.Connection) -> None:
    """Let all tables of a database have seals from now on, also rows that have none yet; in one transaction.

    Raises:
        sqlite3.Error: the database cannot be written.

    """
    add_functions(database)
    database.execute("BEGIN IMMEDIATE")
    with database:
        database.execute(_SCHEMA)
        for table in _tables(database):
            columns, keys = _columns(database, table)
            for statement in _triggers(table, columns, keys):
                database.execute(statement)
            database.execute(
                f"INSERT OR IGNORE INTO {TABLE} SELECT '{table}', edgenewton_key({', '.join(keys)}), "
                f"edgenewton_seal({', '.join(columns)}) FROM {table}"
            )


def check_rows(database: sqlite3.Connection) -> bool:
    """Check that a database is whole; return whether its rows have seals, so that this is known of their values.

    Raises:
        DamagedError: it is damaged; the text says where.
        sqlite3.Error: it cannot be read for another reason, such as a lock.

    """
    # A transaction sees the rows and their seals as they are at one instant, whoever writes meanwhile.
    database.execute("BEGIN")
    try:
        return _check(database)
    except (UnicodeError, OverflowError) as error:
        raise DamagedError(f"a text in it cannot be read ({error})") from None
    except sqlite3.Error as error:
        if is_damage(error):
            raise DamagedError(str(error)) from None
        raise
    finally:
        if database.in_transaction:
            database.rollback()


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is damaged, and not that it is locked, or the disk full."""
    # Text that is no UTF-8 is an OperationalError without a code.
    name = getattr(error, "sqlite_errorname", None)
    return name.startswith(_DAMAGE) if name else "decode" in str(error)


def _check(database: sqlite3.Connection) -> bool:
    faults = [text for (text,) in database.execute("PRAGMA integrity_check(1)")]
    if faults != ["ok"]:
        raise DamagedError(" ".join(str(faults[0]).split()))
    tables = _tables(database)
    is_sealed = bool(
        database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (TABLE,)).fetchone()
    )
    for table in tables if is_sealed else ():
        _check_table(database, table)
    if is_sealed:
        _check_strays(database, tables)
    return is_sealed


def _check_table(database: sqlite3.Connection, table: str) -> None:
    columns, keys = _columns(database, table)
    seals = dict(database.execute(f"SELECT key, seal FROM {TABLE} WHERE of = ?", (table,)))
    places = [columns.index(key) for key in keys]
    for row in database.execute(f"SELECT {', '.join(columns)} FROM {table}"):
        key = row_key(*(row[place] for place in places))
        seal = seals.pop(key, None)
        if seal != row_seal(*row):
            raise DamagedError(f"the entry {key} of its table {table} is not what was written")
    for key in seals:
        raise DamagedError(f"its table {table} lacks the entry {key}")


def _check_strays(database: sqlite3.Connection, tables: list[str]) -> None:
    for (of,) in database.execute(f"SELECT DISTINCT of FROM {TABLE}"):
        if of not in tables:
            raise DamagedError(f"it lacks its table {of}")


def _tables(database: sqlite3.Connection) -> list[str]:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    names = [name for (name,) in rows if name != TABLE]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise DamagedError(f"it has a table named {name!r}")
    return names


def _columns(database: sqlite3.Connection, table: str) -> tuple[list[str], list[str]]:
    """Return the names of a table's columns, and of those of its primary key."""
    about = database.execute(f"PRAGMA table_info({table})").fetchall()
    keys = sorted((place, name) for _, name, _, _, _, place in about if place)
    return [name for _, name, *_ in about], [name for _, name in keys]


def _triggers(table: str, columns: list[str], keys: list[str]) -> list[str]:
    def of(row: str, names: list[str]) -> str:
        return ", ".join(f"{row}.{name}" for name in names)

    forget = f"DELETE FROM {TABLE} WHERE of = '{table}' AND key = edgenewton_key({of('OLD', keys)});"
    keep = (
        f"INSERT OR REPLACE INTO {TABLE} VALUES "
        f"('{table}', edgenewton_key({of('NEW', keys)}), edgenewton_seal({of('NEW', columns)}));"
    )
    statements = []
    for event, body in (("INSERT", keep), ("UPDATE", forget + keep), ("DELETE", forget)):
        name = f"seal_{table}_{event.lower()}"
        statements += [
            f"DROP TRIGGER IF EXISTS {name}",
            f"CREATE TRIGGER {name} AFTER {event} ON {table} BEGIN {body} END",
        ]
    return statements
