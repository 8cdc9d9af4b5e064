"""Checkpoints: what SQLite's log holds is brought into the database, behind those who write."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from threading import Lock, Thread

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

# An award writes about twenty pages: before there are as many in the log as SQLite allows, which would otherwise bring
# them over within a commit that somebody waits for (storage/connecting.py).
EVERY = 128


class Checkpoints:
    """One after every so many writes, on a thread of its own. Neither readers nor writers wait for it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._written = 0
        self._running = Lock()

    def count(self, writes: int) -> None:
        """So many more are in the log. For one thread at a time."""
        self._written += writes
        if self._written >= EVERY and self._running.acquire(blocking=False):
            self._written = 0
            try:
                Thread(target=self._run, name="checkpoint", daemon=True).start()
            except RuntimeError:
                # The machine gives no more threads: SQLite does it by itself when there is more in the log.
                self._running.release()

    def _run(self) -> None:
        try:
            # When it cannot be done, or not wholly, the next one does it.
            with suppress(SQLAlchemyError, sqlite3.Error), closing(self._engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").close()
        finally:
            self._running.release()
