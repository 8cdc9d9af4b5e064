"""The engine behind everything: SQLite by default, PostgreSQL by DATABASE_URL, one SQL for both.

SQLite runs in WAL with `synchronous=FULL`, so that what was acknowledged survives a power cut, and with
`secure_delete`, so that what was erased is gone from the file. Writers take the write lock at once (BEGIN IMMEDIATE):
a transaction that first reads and then writes would otherwise fail with "database is locked" without waiting.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, cast

import orjson
import psycopg
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Engine, Select, Table, create_engine, delete, event, make_url, select
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, OperationalError

from storage.statements import prepared

MIGRATIONS = Path(__file__).parent / "migrations"
UNWRITABLE = "The database file cannot be written. Check the permissions of its folder."


# Below the 2.5 s in which a card answers, and the 10 s in which an award does.
READ_S, WRITE_S = 2, 8
# As much of a SQLite file as it can map at most; addresses, not memory.
MAPPED = 2**31 - 2**16
# How long a writer of SQLite waits for those before it; then SQLite itself waits for others, up to five seconds.
TURN_S = 4
# A connection to PostgreSQL that was not used for so long is asked whether it still lives, before it is trusted.
IDLE_S = 1.0


class DatabaseUnavailable(Exception):
    """The database cannot be opened or is not in the shape this version needs; the text says what to do."""


class Database:
    """Transactions on one database. Thread-safe; make one for each process, after forking."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = make_url(url).get_backend_name() == "sqlite"
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
            self.engine: Engine = _sqlite_engine(url)
            # Beside the others in the same log, which the next commit of those brings to the disk as well.
            self._hasty = _sqlite_engine(url)
            event.listen(self._hasty, "connect", _do_not_wait_for_the_disk)
            self._reader = self.engine
            self._readers: _SqliteReaders | _PostgresReaders = _SqliteReaders(name or "")
            self._turns = _Turns(f"{name}-turn")
        else:
            self.engine = _postgresql_engine(url)
            self._readers = _PostgresReaders(url)
            event.listen(self.engine, "checkin", _note_use)
            event.listen(self.engine, "checkout", _require_life)
            # PostgreSQL would show each statement the newest commits: a balance without its activity.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._turns = _Turns(None)
        self._writer = self.engine.execution_options(tallydesk_write=True)
        self._hasty_writer = self._hasty.execution_options(tallydesk_write=True) if self.sqlite else self._writer

    def look_up(self, statement: Select[Any], **values: Any) -> list[Any]:
        """The rows of one statement, a transaction of its own and the shortest way to an answer.

        For statements that live as long as the module they stand in, with `values` for their parameters.
        """
        ready = prepared(statement, self.engine.dialect)
        return ready.rows(self._readers.fetch(ready.sql, ready.parameters(values)))

    @contextmanager
    def read(self, *, unhurried: bool = False) -> Iterator[Connection]:
        """A transaction that only reads: one consistent view, ended without a trace.

        On PostgreSQL each statement has two seconds, so that a card is never late; `unhurried` reports have no limit.
        """
        with self._reader.connect() as connection:
            if unhurried:
                self.limit_statements(connection, seconds=0)
            yield connection

    @contextmanager
    def write(self, *locks: str, may_be_lost: bool = False) -> Iterator[Connection]:
        """A transaction that is committed when the block ends and rolled back when it raises. Keep it short.

        It begins as holder of `locks`, as from `lock`, one after the other. `may_be_lost`: it is not waited for that
        the disk has it. A power cut may take the last of these transactions back, and only these: for what can be asked
        for again.
        """
        with self._turns.next(), (self._hasty_writer if may_be_lost else self._writer).begin() as connection:
            if not self.sqlite:
                # In one message; each statement has the time limit that stood when it began.
                first = [_limit(WRITE_S), "SET LOCAL synchronous_commit = off" if may_be_lost else "", _locking(locks)]
                connection.exec_driver_sql("; ".join(filter(None, first)))
            yield connection

    def limit_statements(self, tx: Connection, *, seconds: int) -> None:
        """How long a statement of `tx` may take, waiting for locks included; 0 is without limit. PostgreSQL only."""
        if not self.sqlite:
            tx.exec_driver_sql(_limit(seconds))

    def lock(self, tx: Connection, name: str) -> None:
        """Hold `name` until `tx` ends: whoever locks the same name waits. SQLite writers are alone anyway."""
        if not self.sqlite:
            tx.exec_driver_sql(_locking([name]))

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
        self._readers.close()
        self._turns.close()
        if self.sqlite:
            self._hasty.dispose()
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


class _Turns:
    """Who may write to a SQLite file next, on this machine: one after the other, woken as soon as the last has ended.

    SQLite itself lets writers look again after growing pauses, so that under load some wait for seconds while others
    pass. A lock of this process keeps all but one of its threads back; that one waits for the other processes with the
    kernel's lock on an empty file, which ends with whoever held it. Programs that do not take turns (a backup, a shell)
    are still waited for as SQLite does.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._lock = Lock()
        self._file: int | None = None

    @contextmanager
    def next(self) -> Iterator[None]:
        """Wait for the turn and hold it. Raises DBAPIError when it does not come."""
        if self._path is None:
            yield
            return
        if not self._lock.acquire(timeout=TURN_S):
            busy = sqlite3.OperationalError("database is locked")
            raise DBAPIError.instance("BEGIN IMMEDIATE", None, busy, sqlite3.Error, hide_parameters=True)
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class _SqliteReaders:
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
                # Pages are read where the kernel has them instead of being copied; the log's index is mapped anyway.
                reader.execute(f"PRAGMA mmap_size={MAPPED}").close()
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


class _PostgresReaders:
    """Connections to PostgreSQL on which each statement is a transaction of its own: one way there and back."""

    def __init__(self, url: str) -> None:
        self._engine = _postgresql_engine(url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)

    def fetch(self, sql: str, parameters: Any) -> list[Any]:
        """The rows of one SELECT. Raises DBAPIError or TimeoutError, as SQLAlchemy does."""
        try:
            return self._fetch(sql, parameters)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        # The server was started anew since the connection was last used, and so for all others.
        self._engine.dispose()
        return self._fetch(sql, parameters)

    def _fetch(self, sql: str, parameters: Any) -> list[Any]:
        lost = False
        try:
            connection = self._engine.raw_connection()
            reader: Any = connection.driver_connection
            try:
                found: list[Any] = reader.execute(sql, parameters).fetchall()
                return found
            except psycopg.Error as error:
                lost = reader.closed
                if lost:
                    connection.invalidate(error)
                raise
            finally:
                connection.close()
        except psycopg.Error as error:
            raise DBAPIError.instance(
                sql, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=lost
            ) from error

    def close(self) -> None:
        """Close those that nobody uses."""
        self._engine.dispose()


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


def _limit(seconds: int) -> str:
    return f"SET LOCAL statement_timeout = {seconds * 1_000:d}"


def _locking(names: Sequence[str]) -> str:
    numbers = (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True) for name in names)
    calls = [f"pg_advisory_xact_lock({number:d})" for number in numbers]
    return f"SELECT {', '.join(calls)}" if calls else ""


def _sqlite_engine(url: str) -> Engine:
    # More connections than a web process has threads: a reader never waits for a place.
    engine = create_engine(
        url, pool_size=40, hide_parameters=True, json_deserializer=orjson.loads, connect_args={"timeout": 5.0}
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _postgresql_engine(url: str, **options: Any) -> Engine:
    engine = create_engine(
        url,
        pool_size=4,
        max_overflow=4,
        pool_timeout=2,
        hide_parameters=True,
        # A server that is gone or silent must not hold a request: seconds to connect, milliseconds unanswered.
        connect_args={"connect_timeout": 2, "tcp_user_timeout": 5_000},
        **options,
    )
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _do_not_wait_for_the_disk(connection: sqlite3.Connection, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL").close()


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # Transactions are begun by _begin_sqlite; the driver's own implicit BEGIN would come too late and be deferred.
    connection.isolation_level = None
    for pragma in (
        "busy_timeout=5000",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
        # Without it REPLACE would delete rows behind the ledger's triggers.
        "recursive_triggers=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    connection.execute(f"SET statement_timeout = {READ_S * 1_000:d}")
    connection.commit()


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used_at"] = monotonic()


def _require_life(connection: Any, record: Any, _proxy: Any) -> None:
    """Not before every transaction, which would take as long as the lookup itself."""
    if monotonic() - record.info.get("used_at", monotonic()) < IDLE_S:
        return
    try:
        autocommit, connection.autocommit = connection.autocommit, True
        connection.execute("")
        connection.autocommit = autocommit
    except psycopg.Error as error:
        # None of the others is younger by much: all are replaced.
        raise InvalidatePoolError from error


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("tallydesk_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
