"""Connections for single questions: no transaction around them, and no way to write."""

from __future__ import annotations

import sqlite3
from collections import deque
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from storage.connecting import postgresql_engine
from storage.statements import refused

# Bytes of the file: what SQLite maps at most where it is built as usual (https://sqlite.org/limits.html).
MAPPED = 0x7FFF0000


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
                # Pages are read where they lie in memory: asked of the system and copied one by one, those of a card
                # took a tenth of its time. As much as SQLite can.
                reader.execute(f"PRAGMA mmap_size={MAPPED}").close()
            return reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise refused(error, sql=sql, kind=sqlite3.Error) from error
        finally:
            if reader is not None:
                self._idle.append(reader)

    def close(self) -> None:
        """Close those that nobody uses."""
        while self._idle:
            self._idle.pop().close()


class PostgresReaders:
    """Connections to PostgreSQL on which each statement is a transaction of its own: one way there and back."""

    def __init__(self, url: str) -> None:
        # Few: each is in use for about a millisecond.
        self._places = 4
        self._engine = postgresql_engine(
            url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, pool_size=self._places, max_overflow=0
        )
        event.listen(self._engine, "connect", _only_read)

    def fetch(self, sql: str, parameters: Any) -> list[Any]:
        """The rows of one SELECT. Raises DBAPIError or TimeoutError, as SQLAlchemy does."""
        for _ in range(self._places):
            try:
                return self._fetch(sql, parameters)
            except DBAPIError as error:
                # The server was started anew since the connection was last used, and so may be for the others.
                if not error.connection_invalidated:
                    raise
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
            raise refused(error, sql=sql, kind=psycopg.Error, lost=lost) from error

    def close(self) -> None:
        """Close those that nobody uses."""
        self._engine.dispose()


def _only_read(connection: Any, _record: Any) -> None:
    connection.execute("SET default_transaction_read_only = on")
