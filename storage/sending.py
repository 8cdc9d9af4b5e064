"""SQL put to the driver of a transaction: at once, or together with what is sent next, in one message.

Together where the transaction has an Unsent, which those of `storage.postgres_writer` have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

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


def unsent_of(tx: Connection) -> Unsent | None:
    """What waits in `tx`, where something may."""
    found: Unsent | None = tx.get_execution_options().get(UNSENT)
    return found


def run_unseen(tx: Connection, sql: str, parameters: Any) -> None:
    """Run SQL for the driver of `tx` whose rows nobody looks at, as `run` does. Raises DBAPIError."""
    unsent = unsent_of(tx)
    if unsent is None:
        send(tx, sql, parameters)
    else:
        unsent.waiting.append(Asked(sql, parameters))


def send_unsent(tx: Connection) -> None:
    """Send what waits in `tx` to be sent, if anything does. Raises DBAPIError."""
    unsent = unsent_of(tx)
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
    unsent = unsent_of(tx)
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


def refused(error: Exception, *, sql: str, kind: type[Exception], lost: bool = False) -> DBAPIError:
    """What SQLAlchemy would raise for the driver's `error`, whose errors are all of `kind`; it shows no parameters.

    `lost`: the connection is no longer there.
    """
    raised: Any = DBAPIError.instance(sql, None, error, kind, hide_parameters=True, connection_invalidated=lost)
    return cast(DBAPIError, raised)
