"""Connections for single statements, with no transaction around them: questions, and on PostgreSQL notes as well."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError

from storage.connecting import BY_INDEX, postgresql_engine
from storage.sending import refused
from threads import aside

# For the upper levels of the trees in which a card finds its rows. The leaves of a large database come from the
# system's cache with two megabytes as well, SQLite's own choice, and into memory that the processor does not have at
# hand: cards of five million members are a fortieth slower with them.
CACHED_PAGES = 100
# How long a question waits for a file that is locked against readers, as it is for a moment when it was not closed.
BUSY_MS = 5_000


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
                reader = self._connect()
            return reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise refused(error, sql=sql, kind=sqlite3.Error) from error
        finally:
            if reader is not None:
                self._idle.append(reader)

    def _connect(self) -> sqlite3.Connection:
        reader = sqlite3.connect(self._address, uri=True, isolation_level=None, check_same_thread=False)
        try:
            # The second opens the file, and may have to wait for it.
            for pragma in (f"busy_timeout={BUSY_MS}", f"cache_size={CACHED_PAGES}"):
                reader.execute(f"PRAGMA {pragma}").close()
        except BaseException:
            reader.close()
            raise
        return reader

    def close(self) -> None:
        """Close those that nobody uses."""
        while self._idle:
            self._idle.pop().close()


class PostgresStatements:
    """Connections to PostgreSQL on which each statement is a transaction of its own: one way there and back.

    A statement may run twice, when its connection was lost under it.
    """

    def __init__(self, url: str, *settings: str) -> None:
        # Few connections: each is in use for about a millisecond.
        self._places = 4
        self._engine = postgresql_engine(
            url,
            *BY_INDEX,
            *settings,
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
            pool_size=self._places,
            max_overflow=0,
        )

    def fetch(self, sql: str, parameters: Any) -> list[Any]:
        """The rows of one SELECT. Raises DBAPIError or TimeoutError, as SQLAlchemy does."""
        found: list[Any] = self._run(sql, parameters, lambda cursor: cursor.fetchall())
        return found

    def note(self, sql: str, parameters: Any) -> int:
        """Run one statement that writes; how many rows it changed. Raises as `fetch`."""
        with aside():
            return int(self._run(sql, parameters, lambda cursor: cursor.rowcount))

    def _run(self, sql: str, parameters: Any, read: Callable[[Any], Any]) -> Any:
        for _ in range(self._places):
            try:
                return self._run_once(sql, parameters, read)
            except DBAPIError as error:
                # The server was started anew since the connection was last used, and so may be for the others.
                if not error.connection_invalidated:
                    raise
        return self._run_once(sql, parameters, read)

    def _run_once(self, sql: str, parameters: Any, read: Callable[[Any], Any]) -> Any:
        lost = False
        try:
            connection = self._engine.raw_connection()
            driver: Any = connection.driver_connection
            try:
                return read(driver.execute(sql, parameters))
            except psycopg.Error as error:
                lost = driver.closed
                if lost:
                    connection.invalidate(error)
                raise
            finally:
                connection.close()
        except psycopg.Error as error:
            raise refused(error, sql=sql, kind=psycopg.Error, lost=lost) from error

    def close(self) -> None:
        """Close those that nobody uses."""
        self._engine.dispose()
