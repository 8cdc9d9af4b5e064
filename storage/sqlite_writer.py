"""How a process writes to SQLite: one after the other, and with one commit for those who come at the same time."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from storage.connecting import BEGINS, WRITES
from storage.sending import refused
from storage.turns import Turns, busy
from threads import aside

# How long a writer waits for those before it; then SQLite itself waits for others, up to five seconds.
TURN_S = 4
# Other processes wait for as many, and whoever wrote first waits for the last.
MOST_TOGETHER = 16


class SqliteWriter:
    """The transactions of one process, whose threads come in their order.

    A commit costs SQLite more than what is written: pages into its log, and the disk's word that it has them. So
    whoever comes while another writes goes on in the same transaction, each behind a savepoint of its own, and the last
    of them commits for all. Nobody goes on before that commit; when it fails, it has failed for each of them.
    """

    def __init__(self, engine: Engine, turns: Turns) -> None:
        self._engine = engine.execution_options(**{WRITES: True})
        self._turns = turns
        self._line = _Line()
        # The one on which all of this process are written: taking one out of the pool took as long as writing to it.
        self._connection: Connection | None = None
        # Those for `note`, the one used last on top.
        self._idle: deque[Any] = deque()

    @contextmanager
    def transaction(self, *_locks: str, may_be_lost: bool) -> Iterator[Connection]:
        """As Database.write, without locks: whoever writes is alone. Raises DBAPIError when the turn does not come
        within TURN_S."""
        ends = monotonic() + TURN_S
        place = _Place(may_be_lost=may_be_lost)
        try:
            self._line.wait(place, until=ends)
            # From here on nobody else of this process writes, until `_leave`.
            if place.shared is None:
                place.shared = self._begin(may_be_lost=may_be_lost, until=ends)
            else:
                place.shared.join()
        except BaseException:
            if place.has_turn:
                self._leave(place.shared)
            raise
        shared = place.shared
        try:
            yield shared.connection
        except BaseException as error:
            try:
                shared.take_back()
            finally:
                self._leave(shared)
            if isinstance(error, Exception):
                try:
                    # What was seen in the transaction, and perhaps led to this, is true only when it is committed.
                    shared.wait()
                except DBAPIError:
                    # The database's own word about this very block says more than that all was lost with it.
                    if not isinstance(error, DBAPIError):
                        raise
            raise
        try:
            shared.keep()
        finally:
            self._leave(shared)
        shared.wait()

    def note(self, sql: str, parameters: Any) -> int:
        """Run one statement, a transaction of its own that may be lost; how many rows it changed. Raises as
        `transaction`.

        It begins and ends within SQLite, in less time than a thread would need to be given its turn. So it is tried at
        once, and only where somebody writes just now it waits in line.
        """
        try:
            changed = self._note_at_once(sql, parameters)
            if changed is None:
                with self.transaction(may_be_lost=True) as tx:
                    driver: Any = tx.connection.driver_connection
                    changed = int(driver.execute(sql, parameters).rowcount)
        except sqlite3.Error as error:
            raise refused(error, sql=sql, kind=sqlite3.Error) from error
        return changed

    def _note_at_once(self, sql: str, parameters: Any) -> int | None:
        """None when somebody writes just now."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            return int(connection.execute(sql, parameters).rowcount)
        except sqlite3.OperationalError as error:
            # The lower byte: the others tell of which kind it is.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return None
        finally:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the connections, and give back what writing needs beside it. For when nobody writes any more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        while self._idle:
            self._idle.pop().close()
        self._turns.close()

    def _connect(self) -> Any:
        """A connection for `note`, which waits for no disk and for nobody."""
        pooled = self._engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        try:
            for pragma in ("synchronous=NORMAL", "busy_timeout=0"):
                connection.execute(f"PRAGMA {pragma}").close()
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin(self, *, may_be_lost: bool, until: float) -> _Shared:
        turn = self._turns.take(until=until)
        try:
            connection = self._connection or self._engine.connect()
            # Kept again when it has come to a good end.
            self._connection = None
            try:
                _wait_for_the_disk(connection, not may_be_lost)
                connection.info[BEGINS] = True
                connection.begin()
            except BaseException:
                connection.close()
                raise
        except BaseException:
            self._turns.give_back(turn)
            raise
        return _Shared(connection, turn=turn, may_be_lost=may_be_lost)

    def _leave(self, shared: _Shared | None) -> None:
        """Let the next one in: into the same transaction if it may, else after its end."""
        if shared is not None and self._line.let_join(shared):
            return
        try:
            if shared is not None:
                try:
                    if shared.end():
                        self._connection = shared.connection
                finally:
                    self._turns.give_back(shared.turn)
        finally:
            if shared is not None:
                shared.done.set()
            self._line.let_begin()


class _Shared:
    """One transaction, and how far those who share it are. All but `wait` is for whoever has the turn."""

    def __init__(self, connection: Connection, *, turn: int, may_be_lost: bool) -> None:
        self.connection = connection
        self.turn = turn
        self.may_be_lost = may_be_lost
        self.done = Event()
        self._shares = 1
        self._kept = 0
        self._driver: Any = connection.connection.driver_connection
        self._error: BaseException | None = None

    @property
    def open(self) -> bool:
        """Whether another one may join. Where nothing is kept there is nothing to share."""
        return 0 < self._kept <= self._shares < MOST_TOGETHER and self._error is None

    def join(self) -> None:
        """What follows can be taken back alone. Raises DBAPIError."""
        self._shares += 1
        self._execute("SAVEPOINT joined")
        if self._error is not None:
            raise self._error

    def keep(self) -> None:
        """What was written since the beginning, or the last `join`, is to be committed."""
        self._kept += 1
        if self._shares > 1:
            self._execute("RELEASE joined")
        elif not self._driver.in_transaction:
            self._error = _taken_back()

    def take_back(self) -> None:
        """What was written since the last `join` is not to be."""
        if self._kept:
            self._execute("ROLLBACK TO joined")
            self._execute("RELEASE joined")

    def end(self) -> bool:
        """Commit what is kept; whether the connection serves on, and is closed where it does not. Raises no error: all
        of them hear from `wait` what became of it."""
        serves = False
        try:
            if self._error is None:
                if self._kept:
                    self.connection.commit()
                else:
                    self.connection.rollback()
                # Not where a block has closed it, or has taken it for itself.
                serves = not self.connection.closed and not self.connection.connection.is_detached
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            if not serves:
                # SQLite keeps a transaction open whose commit failed, and SQLAlchemy believes that it has ended.
                with suppress(sqlite3.Error):
                    self._driver.rollback()
                with suppress(DBAPIError):
                    self.connection.close()
        return serves

    def wait(self) -> None:
        """Wait for the end. Raises DBAPIError when nothing was committed."""
        if not self.done.is_set():
            with aside():
                self.done.wait()
        if self._error is not None:
            reason = getattr(self._error, "orig", None) or sqlite3.OperationalError(type(self._error).__name__)
            raise refused(reason, sql="COMMIT", kind=sqlite3.Error) from self._error

    def _execute(self, sql: str) -> None:
        """One of the statements about savepoints; after trouble there is nothing more to share."""
        if self._error is None:
            try:
                self._driver.execute(sql).close()
            except sqlite3.Error as error:
                # Without its savepoint: SQLite has taken everything back by itself, as it does when the disk is full,
                # or somebody in the block did.
                gone = not self._driver.in_transaction or "no such savepoint" in str(error)
                self._error = _taken_back() if gone else refused(error, sql=sql, kind=sqlite3.Error)


class _Place:
    """Somebody's place in line. `shared` is the transaction they are let into; with None they begin one."""

    def __init__(self, *, may_be_lost: bool) -> None:
        self.may_be_lost = may_be_lost
        self.shared: _Shared | None = None
        self.has_turn = False
        self.called = Lock()
        self.called.acquire()


class _Line:
    """The threads that want to write, in the order in which they came."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._places: deque[_Place] = deque()
        self._taken = False

    def wait(self, place: _Place, *, until: float) -> None:
        """Wait until it is the turn of `place`. Raises DBAPIError when that is not before `until`."""
        with self._guard:
            if not self._taken:
                self._taken = place.has_turn = True
                return
            self._places.append(place)
        try:
            with aside():
                place.called.acquire(timeout=max(0.0, until - monotonic()))
        finally:
            with self._guard:
                # It may have been called at the last moment.
                if not place.has_turn:
                    self._places.remove(place)
        if not place.has_turn:
            raise busy()

    def let_join(self, shared: _Shared) -> bool:
        """Let the next one into this transaction; False when there is none, or it may not.

        Who is not waited for until the disk has it may join those who are, but not the other way round.
        """
        with self._guard:
            if not shared.open or not self._places or (shared.may_be_lost and not self._places[0].may_be_lost):
                return False
            place = self._places.popleft()
            place.shared, place.has_turn = shared, True
            place.called.release()
        return True

    def let_begin(self) -> None:
        """Let the next one begin, if there is one."""
        with self._guard:
            if not self._places:
                self._taken = False
                return
            place = self._places.popleft()
            place.has_turn = True
            place.called.release()


def _wait_for_the_disk(connection: Connection, waits: bool) -> None:
    """Whether commits on this connection, outside a transaction now, wait until the disk has them."""
    if connection.info.get("waits", True) is not waits:
        driver: Any = connection.connection.driver_connection
        driver.execute(f"PRAGMA synchronous={'FULL' if waits else 'NORMAL'}").close()
        connection.info["waits"] = waits


def _taken_back() -> Exception:
    lost = sqlite3.OperationalError("disk I/O error")
    return refused(lost, sql="COMMIT", kind=sqlite3.Error)
