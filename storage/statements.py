"""Statements that are run with every ticket and every award: written for a database once, and put to its driver.

SQLAlchemy's own way to run a statement costs several times what SQLite needs for it, most of all where the statement is
put together anew (docs/benchmarks.md). They are written with SQLAlchemy all the same, one text for both databases, as
constants of their modules; values go in and come out as the types of their columns say.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import attrgetter
from typing import Any

from sqlalchemy import BindParameter, Connection, Delete, Dialect, Insert, SelectBase, Update, literal_column
from sqlalchemy.exc import InvalidRequestError, NoResultFound
from sqlalchemy.sql.visitors import replacement_traverse

from storage.sending import Asked, run_unseen, send, send_unsent, unsent_of

Writing = Insert | Update | Delete


class Statement:
    """One statement in the words of `dialect`. None of its parameters is a list."""

    def __init__(self, statement: SelectBase | Writing, dialect: Dialect) -> None:
        written: Any = statement
        if not isinstance(statement, Insert):
            written = replacement_traverse(statement, {}, partial(_constant, dialect=dialect))
        compiled = written.compile(dialect=dialect)
        self.sql = str(compiled)
        self._given = dict(compiled.params)
        self._order = compiled.positiontup
        self._required = {name for name, bind in compiled.binds.items() if bind.required}
        writers = {
            name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in compiled.binds.items()
        }
        self._write = {name: write for name, write in writers.items() if write is not None}
        for name, value in self._given.items():
            if name in self._write:
                self._given[name] = self._write[name](value)
        columns = statement.exported_columns.items()
        self.has_rows = bool(columns)
        self._row: Any = namedtuple("Row", [name for name, _ in columns])  # type: ignore[misc]
        readers = [column.type.dialect_impl(dialect).result_processor(dialect, None) for _, column in columns]
        self._read: list[tuple[int, Callable[[Any], Any]]] = [(at, read) for at, read in enumerate(readers) if read]

    def parameters(self, values: dict[str, Any]) -> Any:
        """What the driver takes beside `sql`. Raises TypeError when `values` are not just those that it needs."""
        if values.keys() != self._required:
            raise TypeError(f"Needed are {sorted(self._required)}, given were {sorted(values)}.")
        for name, write in self._write.items():
            if name in values:
                values[name] = write(values[name])
        values = {**self._given, **values}
        return values if self._order is None else tuple([values[name] for name in self._order])

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


def _constant(element: Any, *, dialect: Dialect, **_: Any) -> Any:
    """A constant as it is written in SQL. SQLite plans a statement anew whenever a parameter is bound that could decide
    whether a partial index serves, which takes twenty times as long as running it.
    Source: https://sqlite.org/c3ref/prepare.html
    """
    if isinstance(element, BindParameter) and not element.required and element.value is not None:
        write = element.type.dialect_impl(dialect).literal_processor(dialect)
        # SQLAlchemy would escape a percent sign twice.
        if write is not None and "%" not in str(element.value):
            return literal_column(write(element.value), element.type)
    return None


_prepared: dict[tuple[str, Any], Statement] = {}


def prepared(statement: SelectBase | Writing, dialect: Dialect) -> Statement:
    """`statement`, which lives as long as its module, in the words of `dialect`."""
    key = dialect.name, statement
    found = _prepared.get(key)
    if found is None:
        found = _prepared[key] = Statement(statement, dialect)
    return found


def run(tx: Connection, statement: SelectBase | Writing, **values: Any) -> list[Any]:
    """Run `statement` in `tx` with `values` for its parameters; the rows it gives. Raises DBAPIError.

    Where `tx` has UNSENT, what gives no rows is sent with what comes next, and refused there.
    """
    ready = prepared(statement, tx.dialect)
    parameters = ready.parameters(values)
    if not ready.has_rows:
        run_unseen(tx, ready.sql, parameters)
        return []
    found: list[Any] = send(tx, ready.sql, parameters, read=lambda cursor: ready.rows(cursor.fetchall()))
    return found


def ask(tx: Connection, statement: SelectBase, **values: Any) -> Callable[[], list[Any]]:
    """A function that gives what `run` would now, for rows that are looked at after those of another statement.

    Where `tx` has UNSENT, both are asked for at once.
    """
    unsent = unsent_of(tx)
    if unsent is None:
        found = run(tx, statement, **values)
        return lambda: found
    ready = prepared(statement, tx.dialect)
    asked = Asked(ready.sql, ready.parameters(values))
    unsent.waiting.append(asked)

    @cache
    def rows() -> list[Any]:
        send_unsent(tx)
        if not asked.was_run:
            raise InvalidRequestError("It was not run: a statement before it was refused.")
        return ready.rows(asked.cursor.fetchall())

    return rows


def change(tx: Connection, statement: Writing, **values: Any) -> int:
    """Run `statement` in `tx` at once, as `run`; how many rows it changed."""
    ready = prepared(statement, tx.dialect)
    return int(send(tx, ready.sql, ready.parameters(values), read=attrgetter("rowcount")))


def run_one(tx: Connection, statement: SelectBase | Writing, **values: Any) -> Any:
    """The one row that `run` gives. Raises NoResultFound when there is another number of them."""
    rows = run(tx, statement, **values)
    if len(rows) != 1:
        raise NoResultFound(f"{len(rows)} rows where there should be one.")
    return rows[0]
