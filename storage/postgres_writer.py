"""Transactions that write to PostgreSQL, in as few messages there and back as they allow.

Each message costs an award more than what the server does with it, most of all where the server is another host.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any

import psycopg
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError

from storage.connecting import BY_INDEX, WRITE_S, limit, postgresql_engine
from storage.sending import UNSENT, Unsent, send, send_unsent
from threads import aside

# After an error it warns that what followed in the same message was not run; the error itself is raised.
logging.getLogger("psycopg").addFilter(lambda record: not record.getMessage().endswith("pipeline aborted"))


class PostgresWriter:
    """Begins and ends transactions in words of its own: the first message brings the locks along, the last one what
    need not be looked at before the end."""

    def __init__(self, url: str) -> None:
        self._engine = postgresql_engine(
            url, *BY_INDEX, limit(WRITE_S), pool_size=8, max_overflow=4, isolation_level="AUTOCOMMIT"
        )

        # What goes past `storage.statements` knows nothing of what waits there.
        @event.listens_for(self._engine, "before_cursor_execute")
        def first_what_waits(tx: Connection, *_: Any) -> None:
            send_unsent(tx)

    @contextmanager
    def transaction(self, *locks: str, may_be_lost: bool) -> Iterator[Connection]:
        """As `Database.write`."""
        first = "BEGIN"
        if may_be_lost:
            first += "; SET LOCAL synchronous_commit = off"
        if locks:
            first += f"; {locking(locks)}"
        with aside(), self._begun(first) as connection:
            unsent = Unsent()
            tx = connection.execution_options(**{UNSENT: unsent})
            try:
                yield tx
                # What the driver refuses the server does not know of.
                if unsent.refused or send(tx, "COMMIT", read=attrgetter("statusmessage")) != "COMMIT":
                    raise InvalidRequestError("A statement was refused, and the block went on: nothing was written.")
            except BaseException:
                unsent.take()
                # The driver's own way: it forgets what it believes prepared, and was not run any more.
                with suppress(SQLAlchemyError, psycopg.Error):
                    tx.connection.rollback()
                raise

    def _begun(self, first: str, *, again: bool = True) -> Connection:
        """A connection on which `first` was run. Where the server was started anew since it was last used, nothing was
        done yet, and the next one is taken: the pool makes them all anew by then."""
        connection = self._engine.connect()
        try:
            connection.exec_driver_sql(first)
        except BaseException as error:
            connection.close()
            if again and isinstance(error, DBAPIError) and error.connection_invalidated:
                return self._begun(first, again=False)
            raise
        return connection

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()


def locking(names: Sequence[str]) -> str:
    """The statement that waits for all of `names`, one after the other, and holds them until the transaction ends."""
    numbers = (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True) for name in names)
    return f"SELECT {', '.join(f'pg_advisory_xact_lock({number:d})' for number in numbers)}"
