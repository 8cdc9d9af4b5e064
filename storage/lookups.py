"""Lookups: what is asked with every ticket, one SELECT each, in the words of the database and put to its driver.

SQLAlchemy's own way to run a statement costs several times what SQLite needs to answer it (docs/benchmarks.md). The
statement is written with SQLAlchemy all the same, once for both databases, and values come back as its columns say.
"""

from __future__ import annotations

import sqlite3
from collections import deque, namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Dialect, Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler


class Lookup:
    """One SELECT in the words of `dialect`. Its parameters are plain text and numbers, none of them a list."""

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 (what compiling a SELECT gives)
        self.sql = str(compiled)
        self._given = dict(compiled.params)
        self._order = compiled.positiontup
        columns = statement.selected_columns
        self._row: Any = namedtuple("Row", columns.keys())  # type: ignore[misc]
        read = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._read: list[tuple[int, Callable[[Any], Any]]] = [(at, one) for at, one in enumerate(read) if one]

    def parameters(self, values: dict[str, Any]) -> Any:
        """What the driver takes beside `sql`."""
        values = {**self._given, **values}
        return values if self._order is None else [values[name] for name in self._order]

    def rows(self, found: Sequence[Sequence[Any]]) -> list[Any]:
        """The driver's rows, with the names of the columns and their types."""
        if not self._read:
            return [self._row._make(values) for values in found]
        rows = []
        for values in map(list, found):
            for at, read in self._read:
                values[at] = read(values[at])
            rows.append(self._row._make(values))
        return rows


class SqliteReaders:
    """Connections to a SQLite file that only read, handed from thread to thread: there are as many as are in use at
    once, and the one used last, whose cache is warm, is used next."""

    def __init__(self, path: str) -> None:
        self._address = f"{Path(path).absolute().as_uri()}?mode=ro"
        self._idle: deque[sqlite3.Connection] = deque()

    def fetch(self, sql: str, parameters: Any) -> list[Any]:
        """The rows of one SELECT. Raises DBAPIError, as SQLAlchemy does."""
        reader = None
        try:
            try:
                reader = self._idle.pop()
            except IndexError:
                reader = sqlite3.connect(self._address, uri=True, isolation_level=None, check_same_thread=False)
                reader.execute("PRAGMA busy_timeout=5000").close()
            return reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise DBAPIError.instance(sql, None, error, sqlite3.Error, hide_parameters=True) from error
        finally:
            if reader is not None:
                self._idle.append(reader)

    def close(self) -> None:
        """Close those that nobody uses."""
        while self._idle:
            self._idle.pop().close()
