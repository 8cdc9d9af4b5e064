"""How connections to the two databases are made, and what each has to know of us.

SQLite runs in WAL with `synchronous=FULL`, so that what was acknowledged survives a power cut, and with
`secure_delete`, so that what was erased is gone from the file. Writers take the write lock at once (BEGIN IMMEDIATE):
a transaction that first reads and then writes would otherwise fail with "database is locked" without waiting.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import InvalidRequestError

from storage.sending import refused

# The time limits of statements, below the 2.5 s in which a card answers, and of those that write, below the 10 s in
# which an award does.
READ_S, WRITE_S = 2, 8
# For connections whose statements all find their rows by an index. PostgreSQL keeps a plan as long as the connection,
# for the checks of foreign keys as well: made while a table was empty, it would read all of it when there is much. What
# has no index all the same counts as so costly then that compiling it seems worth 50 ms.
BY_INDEX = ("enable_seqscan = off", "jit = off")
# Marks the engines and connections whose transactions write.
WRITES = "tallydesk_write"
# Marks a connection whose writer is about to begin. Whoever still has it when their own block has ended begins nothing.
BEGINS = "tallydesk_begins"


def sqlite_engine(url: str) -> Engine:
    """For SQLite: transactions that begin as WRITES says."""
    engine = create_engine(
        url,
        # More connections than a web process has threads, its own and those behind: a reader never waits for a place.
        pool_size=120,
        # The one used last, whose cache is warm.
        pool_use_lifo=True,
        hide_parameters=True,
        json_serializer=_json,
        json_deserializer=orjson.loads,
        connect_args={"timeout": 5.0},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def postgresql_engine(url: str, *settings: str, **options: Any) -> Engine:
    """For PostgreSQL, with these `settings` for each connection; `options` are those of create_engine."""
    engine = create_engine(
        url,
        pool_timeout=2,
        hide_parameters=True,
        # A server that is gone or silent must not hold a request: seconds to connect, milliseconds unanswered.
        connect_args={"connect_timeout": 2, "tcp_user_timeout": 5_000},
        **options,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.execute("; ".join(f"SET {setting}" for setting in (limit(READ_S), *settings)))
        if not connection.autocommit:
            connection.commit()

    return engine


def limit(seconds: int) -> str:
    """The setting of PostgreSQL that gives each statement so much time, waiting for locks included; 0 is no limit."""
    return f"statement_timeout = {seconds * 1_000:d}"


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
        # What a savepoint may take back; it is little, and a file for it would be made with every transaction.
        "temp_store=MEMORY",
        # Pages in the log until a commit brings them into the database, during which writers wait: four times as seldom
        # as by itself, and less than four times as long, since most awards touch some pages that all of them do.
        "wal_autocheckpoint=4000",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    if writes and not connection.info.pop(BEGINS, False):
        raise InvalidRequestError("What writes begins with Database.write, and ends with its block.")
    sql = "BEGIN IMMEDIATE" if writes else "BEGIN"
    driver: Any = connection.connection.driver_connection
    try:
        driver.execute(sql).close()
    except sqlite3.Error as error:
        raise refused(error, sql=sql, kind=sqlite3.Error) from error
