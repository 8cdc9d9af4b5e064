"""Checkpoints: what SQLite's log holds is brought into the database, behind those who write."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from threading import Lock, Thread

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

# An award writes about twenty pages: so that little is left for SQLite to bring over by itself, within a commit that
# somebody waits for, when there are too many in the log (storage/connecting.py).
EVERY = 128


class Checkpoints:
    """One after every so many writes, on a thread of its own. Neither readers nor writers wait for it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._since = 0
        self._running = Lock()

    def due(self, writes: int) -> bool:
        """Whether it is time for one, now that there are so many writes more. For one thread at a time."""
        self._since += writes
        if self._since < EVERY:
            return False
        self._since = 0
        return True

    def begin(self) -> None:
        """Begin one, unless one is under way."""
        if self._running.acquire(blocking=False):
            try:
                Thread(target=self._run, name="checkpoint", daemon=True).start()
            except BaseException as error:
                self._running.release()
                # Where the machine gives no more threads, SQLite does it by itself when there is more in the log.
                if not isinstance(error, RuntimeError):
                    raise

    def close(self) -> None:
        """Wait for one that is under way."""
        with self._running:
            pass

    def _run(self) -> None:
        try:
            # When it cannot be done, or not wholly, the next one does it.
            with suppress(SQLAlchemyError, sqlite3.Error), closing(self._engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").close()
        finally:
            self._running.release()
