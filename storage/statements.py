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
from typing import Any, cast

from sqlalchemy import BindParameter, Connection, Delete, Dialect, Insert, SelectBase, Update, literal_column
from sqlalchemy.exc import DBAPIError, InvalidRequestError, NoResultFound
from sqlalchemy.sql.visitors import replacement_traverse

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


# The option of a connection whose Unsent it is.
UNSENT = "tallydesk_unsent"


class Asked:
    """SQL for the driver; when it was sent, `cursor` is what the driver made of it."""

    def __init__(self, sql: str, parameters: Any) -> None:
        self.sql = sql
        self.parameters = parameters
        self.cursor: Any = None

    @property
    def was_run(self) -> bool:
        """Whether it was sent and not refused, nor anything before it."""
        return self.cursor is not None and self.cursor.statusmessage is not None


class Unsent:
    """What goes along with what is sent next in a transaction. `refused`: something was, and with it what came after,
    so that there is nothing to commit."""

    def __init__(self) -> None:
        self.waiting: list[Asked] = []
        self.refused = False

    def take(self) -> list[Asked]:
        """What waits; it does no longer."""
        waiting, self.waiting = self.waiting, []
        return waiting


def _unsent(tx: Connection) -> Unsent | None:
    found: Unsent | None = tx.get_execution_options().get(UNSENT)
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
    unsent = _unsent(tx)
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


def run_unseen(tx: Connection, sql: str, parameters: Any) -> None:
    """Run SQL for the driver of `tx` whose rows nobody looks at, as `run` does. Raises DBAPIError."""
    unsent = _unsent(tx)
    if unsent is None:
        send(tx, sql, parameters)
    else:
        unsent.waiting.append(Asked(sql, parameters))


def change(tx: Connection, statement: Writing, **values: Any) -> int:
    """Run `statement` in `tx` at once, as `run`; how many rows it changed."""
    ready = prepared(statement, tx.dialect)
    return int(send(tx, ready.sql, ready.parameters(values), read=attrgetter("rowcount")))


def send_unsent(tx: Connection) -> None:
    """Send what waits in `tx` to be sent, if anything does. Raises DBAPIError."""
    unsent = _unsent(tx)
    if unsent is not None and unsent.waiting:
        last = unsent.waiting.pop()
        last.cursor = send(tx, last.sql, last.parameters, read=lambda cursor: cursor)


def send(tx: Connection, sql: str, parameters: Any = (), *, read: Callable[[Any], Any] = lambda _: None) -> Any:
    """Put SQL to the driver of `tx`, together with what waits there to be sent; what `read` makes of its cursor.

    Raises DBAPIError, for the first that is refused; nothing after it was run then.
    """
    if not tx.in_transaction():
        tx.begin()
    loaded: Any = tx.dialect.loaded_dbapi
    unsent = _unsent(tx)
    before = [] if unsent is None else unsent.take()
    try:
        driver: Any = tx.connection.driver_connection
        if not before:
            return read(driver.execute(sql, parameters))
        # https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html
        with driver.pipeline():
            for one in before:
                one.cursor = driver.execute(one.sql, one.parameters)
            cursor = driver.execute(sql, parameters)
        return read(cursor)
    except BaseException as error:
        if unsent is not None:
            unsent.refused = True
        if not isinstance(error, loaded.Error):
            raise
        lost = tx.dialect.is_disconnect(error, tx.connection, None)
        if lost:
            tx.invalidate(error)
        first = next((one.sql for one in before if not one.was_run), sql)
        raise refused(error, sql=first, kind=loaded.Error, lost=lost) from error


def run_one(tx: Connection, statement: SelectBase | Writing, **values: Any) -> Any:
    """The one row that `run` gives. Raises NoResultFound when there is another number of them."""
    rows = run(tx, statement, **values)
    if len(rows) != 1:
        raise NoResultFound(f"{len(rows)} rows where there should be one.")
    return rows[0]


def refused(error: Exception, *, sql: str, kind: type[Exception], lost: bool = False) -> DBAPIError:
    """What SQLAlchemy would raise for the driver's `error`, whose errors are all of `kind`; it shows no parameters.

    `lost`: the connection is no longer there.
    """
    raised: Any = DBAPIError.instance(sql, None, error, kind, hide_parameters=True, connection_invalidated=lost)
    return cast(DBAPIError, raised)
