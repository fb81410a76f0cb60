"""Statements that SQLAlchemy compiles once and the driver then executes directly.

They are for the few statements of every transaction, where SQLAlchemy's overhead exceeds the database's work.
They still use the dialect (`do_execute`, `do_executemany`), and errors are SQLAlchemy's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

import psycopg
from sqlalchemy import BindParameter, ClauseElement, Connection, Table, bindparam
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

Values = tuple[Any, ...]

COPY_ROWS: Final = 10
"""From this number of rows on, a `BulkInsert` is a COPY on PostgreSQL."""
_ROWS_AT_ONCE: Final = 100
"""Rows in one statement of a `BulkInsert` on SQLite. The driver releases the GIL at each statement and must
wait for it again; a statement costs a sixth of a row."""


def execute(
    connection: Connection, text: str, values: Values | Sequence[Values], *, many: bool = False
) -> Any:
    """Execute a statement, with `many` once for each of `values`. Returns the driver's cursor.

    Raises:
        DBAPIError: as SQLAlchemy raises it.
    """
    dialect, driver = connection.dialect, connection.connection.dbapi_connection
    assert driver is not None, "the connection is open"
    cursor: Any = driver.cursor()
    try:
        (dialect.do_executemany if many else dialect.do_execute)(cursor, text, values)
    except dialect.loaded_dbapi.Error as error:
        raise _as_sqlalchemy(connection, driver, text, error) from error
    return cursor


class Prepared:
    """A statement that is compiled once for each dialect."""

    def __init__(self, statement: ClauseElement, names: Sequence[str]) -> None:
        """`names` are the statement's parameters in the order of the values."""
        self._statement = statement
        self._names = tuple(names)
        self._compiled: dict[str, str] = {}

    @classmethod
    def insert(cls, table: Table, columns: Sequence[str] | None = None) -> "Prepared":
        """An INSERT. Values are in the order of `columns`, by default all columns of the table."""
        parameters: dict[str, BindParameter[Any]] = {
            name: bindparam(f"new_{name}") for name in columns or table.columns.keys()
        }
        return cls(table.insert().values(parameters), [parameter.key for parameter in parameters.values()])

    @classmethod
    def update(cls, table: Table, columns: Sequence[str], key: Sequence[str]) -> "Prepared":
        """An UPDATE of the row with a key. Values are `columns`, in the table's order, then `key`."""
        new: dict[str, BindParameter[Any]] = {name: bindparam(f"new_{name}") for name in columns}
        of: dict[str, BindParameter[Any]] = {name: bindparam(f"of_{name}") for name in key}
        found = (table.c[name] == parameter for name, parameter in of.items())
        parameters = (*new.values(), *of.values())
        return cls(table.update().values(new).where(*found), [parameter.key for parameter in parameters])

    def run(self, connection: Connection, values: Values) -> None:
        """Execute it once."""
        execute(connection, self._text(connection), values)

    def rows(self, connection: Connection, values: Values) -> list[Values]:
        """Execute it once and return the rows."""
        found: list[Values] = execute(connection, self._text(connection), values).fetchall()
        return found

    def run_many(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Execute it for each of `rows`."""
        if len(rows) == 1:
            self.run(connection, rows[0])
        else:
            execute(connection, self._text(connection), rows, many=True)

    def _text(self, connection: Connection) -> str:
        dialect = connection.dialect
        text = self._compiled.get(dialect.name)
        if text is None:
            compiled = self._statement.compile(dialect=dialect)
            assert isinstance(compiled, SQLCompiler)
            assert tuple(compiled.positiontup or ()) == self._names, "values are in the driver's order"
            text = self._compiled[dialect.name] = str(compiled)
        return text


class BulkInsert(Prepared):
    """An INSERT of many rows: one COPY on PostgreSQL, few statements on SQLite."""

    def __init__(self, table: Table, columns: Sequence[str]) -> None:
        insert = Prepared.insert(table, columns)
        super().__init__(insert._statement, insert._names)
        names = ", ".join(f'"{column}"' for column in columns)
        self._copy = f'COPY "{table.name}" ({names}) FROM STDIN'
        places = f"({', '.join('?' * len(columns))})"
        self._full = f'INSERT INTO "{table.name}" ({names}) VALUES {", ".join([places] * _ROWS_AT_ONCE)}'

    def run_many(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Insert `rows`."""
        if connection.dialect.name == "sqlite":
            self._insert(connection, rows)
        elif len(rows) < COPY_ROWS:
            super().run_many(connection, rows)
        else:
            self._copy_in(connection, rows)

    def _insert(self, connection: Connection, rows: Sequence[Values]) -> None:
        full = len(rows) - len(rows) % _ROWS_AT_ONCE
        for start in range(0, full, _ROWS_AT_ONCE):
            values = tuple(chain.from_iterable(rows[start : start + _ROWS_AT_ONCE]))
            execute(connection, self._full, values)
        if full < len(rows):
            super().run_many(connection, rows[full:])

    def _copy_in(self, connection: Connection, rows: Sequence[Values]) -> None:
        driver: Any = connection.connection.driver_connection
        with _translated(connection, self._copy), driver.cursor() as cursor, cursor.copy(self._copy) as copy:
            for row in rows:
                copy.write_row(row)


@contextmanager
def one_trip(connection: Connection) -> Iterator[None]:
    """Pipeline the statements inside: PostgreSQL gets them without waiting for each answer.

    Queries and COPY are not possible inside. An error is raised at the end, or at a commit inside.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    driver: Any = connection.connection.driver_connection
    with _translated(connection, "pipeline"), driver.pipeline():
        yield


@contextmanager
def _translated(connection: Connection, statement: str) -> Iterator[None]:
    driver = connection.connection.dbapi_connection
    try:
        yield
    except psycopg.Error as error:
        raise _as_sqlalchemy(connection, driver, statement, error) from error


def _as_sqlalchemy(connection: Connection, driver: Any, statement: str, error: Exception) -> BaseException:
    """The driver's error as SQLAlchemy raises it."""
    dialect = connection.dialect
    lost = dialect.is_disconnect(error, driver, None)  # type: ignore[arg-type]
    if lost:
        connection.invalidate(error)
    base: Any = dialect.loaded_dbapi.Error
    return DBAPIError.instance(statement, None, error, base, connection_invalidated=lost, dialect=dialect)
