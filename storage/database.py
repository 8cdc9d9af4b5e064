"""The database behind everything: SQLite by default, PostgreSQL by DATABASE_URL, one SQL for both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Engine, Select, Table, delete, make_url, select
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError, OperationalError

from storage.connecting import WRITE_S, limit, postgresql_engine, sqlite_engine
from storage.postgres_writer import PostgresWriter, locking
from storage.single_statements import PostgresStatements, SqliteReaders
from storage.sqlite_writer import SqliteWriter
from storage.statements import Writing, prepared
from storage.turns import Turns

MIGRATIONS = Path(__file__).parent / "migrations"
UNWRITABLE = "The database file cannot be written. Check the permissions of its folder."


class DatabaseUnavailable(Exception):
    """The database cannot be opened or is not in the shape this version needs; the text says what to do."""


class Database:
    """Transactions on one database. Thread-safe; make one for each process, after forking."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.dialect = make_url(url).get_backend_name()
        self.sqlite = self.dialect == "sqlite"
        if self.sqlite:
            name = make_url(url).database
            if name and name != ":memory:":
                try:
                    Path(name).parent.mkdir(parents=True, exist_ok=True)
                    # Nobody else on the machine reads it; the files beside it take over its mode.
                    os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
                except FileExistsError as error:
                    # Never opened and closed here: that would end the locks SQLite holds on it in this process, and
                    # another process would take away the log from under it. https://sqlite.org/howtocorrupt.html
                    if not os.access(name, os.R_OK | os.W_OK):
                        raise DatabaseUnavailable(UNWRITABLE) from error
                except OSError as error:
                    raise DatabaseUnavailable(UNWRITABLE) from error
            self.engine: Engine = sqlite_engine(url)
            self._reader = self.engine
            self._readers: SqliteReaders | PostgresStatements = SqliteReaders(name or "")
            sqlite_writer = SqliteWriter(self.engine, Turns(name or ""))
            self._writer: SqliteWriter | PostgresWriter = sqlite_writer
            self._notes: SqliteWriter | PostgresStatements = sqlite_writer
        else:
            self.engine = postgresql_engine(url, pool_size=2, max_overflow=4, pool_pre_ping=True)
            # PostgreSQL would show each statement the newest commits: a balance without its activity.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._readers = PostgresStatements(url, "default_transaction_read_only = on")
            self._writer = PostgresWriter(url)
            self._notes = PostgresStatements(url, "synchronous_commit = off", limit(WRITE_S))

    def look_up(self, statement: Select[Any], **values: Any) -> list[Any]:
        """The rows of one statement, a transaction of its own and the shortest way to an answer.

        For statements that live as long as the module they stand in, with `values` for their parameters.
        """
        ready = prepared(statement, self.engine.dialect)
        return ready.rows(self._readers.fetch(ready.sql, ready.parameters(values)))

    def note(self, statement: Writing, **values: Any) -> int:
        """Run one statement that writes, and is a transaction of its own; how many rows it changed.

        The shortest way to write, for statements as for `look_up`, as if in `write(may_be_lost=True)`. When its
        connection is lost it may run twice: the statement says itself under which conditions it holds.
        """
        ready = prepared(statement, self.engine.dialect)
        return self._notes.note(ready.sql, ready.parameters(values))

    @contextmanager
    def read(self, *, unhurried: bool = False) -> Iterator[Connection]:
        """A transaction that only reads: one consistent view, ended without a trace.

        On PostgreSQL each statement has two seconds, so that a card is never late; `unhurried` reports have no limit.
        """
        with self._reader.connect() as connection:
            if unhurried:
                self.limit_statements(connection, seconds=0)
            yield connection

    def write(self, *locks: str, may_be_lost: bool = False) -> AbstractContextManager[Connection]:
        """A transaction that is committed when the block ends and rolled back when it raises. Keep it short.

        It begins as holder of `locks`, as from `lock`, one after the other. `may_be_lost`: it is not waited for that
        the disk has it. A power cut may take the last of these transactions back, and only these: for what can be asked
        for again.
        """
        return self._writer.transaction(*locks, may_be_lost=may_be_lost)

    def limit_statements(self, tx: Connection, *, seconds: int) -> None:
        """How long a statement of `tx` may take, waiting for locks included; 0 is without limit. PostgreSQL only."""
        if not self.sqlite:
            tx.exec_driver_sql(f"SET LOCAL {limit(seconds)}")

    def lock(self, tx: Connection, name: str) -> None:
        """Hold `name` until `tx` ends: whoever locks the same name waits. SQLite writers are alone anyway."""
        if not self.sqlite:
            tx.exec_driver_sql(locking([name]))

    def leave_no_trace(self) -> bool:
        """Bring what was erased out of every file: SQLite's log still holds pages as they were. False while somebody
        reads what is in the log; it is repeated then. PostgreSQL cleans up by itself (its autovacuum)."""
        if not self.sqlite:
            return True
        raw = self.engine.raw_connection()
        try:
            # Not through the engine, which begins a transaction: in one nothing can be brought over.
            row = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            raw.close()
        return bool(row[0] == 0)

    def close(self) -> None:
        """Close every pooled connection."""
        # Each once: on SQLite notes go through the writer.
        for each in {self._readers, self._notes, self._writer}:
            each.close()
        self.engine.dispose()

    def require_current(self) -> None:
        """Raises DatabaseUnavailable, with a sentence, unless the schema is exactly this version's."""
        newest, known = _revisions()
        try:
            with self.engine.connect() as connection:
                found = MigrationContext.configure(connection).get_current_revision()
        except DBAPIError as error:
            raise DatabaseUnavailable(unavailable_sentence(error)) from error
        if found == newest:
            return
        if found is None:
            raise DatabaseUnavailable("The database is empty. Run: flask db-upgrade")
        if found in known:
            raise DatabaseUnavailable(
                f"The database is of an older version ({found}, needed is {newest}). Run: flask db-upgrade"
            )
        raise DatabaseUnavailable(
            f"The database was made by a newer version of Tallydesk ({found}; this one knows {newest}). "
            "Start that version, or restore the backup made before the upgrade."
        )

    def alembic_config(self) -> Config:
        """Alembic's configuration for this database; the migrations use our engine and its settings."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["database"] = self
        return config


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """The newest revision of this version's schema, and all it knows. Reading them takes longer than a readiness."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    return scripts.get_current_head(), frozenset(script.revision for script in scripts.walk_revisions())


# INSERT INTO with ON CONFLICT, by the name of the dialect; both have the same methods for it.
INSERTS: dict[str, Callable[[Table], Insert]] = {"postgresql": insert, "sqlite": cast(Any, sqlite_insert)}


def insert_into(tx: Connection, table: Table) -> Insert:
    """INSERT INTO `table` in the dialect of `tx`, for ON CONFLICT."""
    return INSERTS[tx.dialect.name](table)


def erase_older(database: Database, time: Column[Any], *, than: datetime, limit: int = 1_000) -> int:
    """Erase rows whose `time` lies before `than`, at most `limit` of them, in a transaction of its own; how many.

    `time` is a column of a table whose key is `id`.
    """
    table = time.table
    old = select(table.c.id).where(time < than).limit(limit)
    with database.write() as tx:
        return tx.execute(delete(table).where(table.c.id.in_(old))).rowcount


def unavailable_sentence(error: DBAPIError) -> str:
    """Why the database did not serve, for a person. Takes the driver's error; never shows SQL or its values."""
    told = str(error.orig).lower()
    if "locked" in told or "busy" in told or "statement timeout" in told:
        return "The database is busy. Try again in a moment."
    if "full" in told or "no space" in told or "disk i/o" in told:
        return "The disk of the database is full. Make room and try again."
    if "readonly" in told or "read-only" in told or "unable to open" in told:
        return UNWRITABLE
    if isinstance(error, OperationalError):
        return "The database cannot be reached. Check DATABASE_URL and whether the server runs."
    return "The database refused the operation."
