"""Who may write to a SQLite file next, on this machine."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from storage.statements import refused

# How long a writer waits for those before it; then SQLite itself waits for others, up to five seconds.
TURN_S = 4


class Turns:
    """One writer after the other, each woken as soon as the last has ended.

    SQLite itself lets writers look again after growing pauses, so that under load some wait for seconds while others
    pass. A lock of this process keeps all but one of its threads back; that one waits for the other processes with the
    kernel's lock on an empty file, which ends with whoever held it. Programs that do not take turns (a backup, a shell)
    are still waited for as SQLite does.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = Lock()
        self._file: int | None = None

    @contextmanager
    def next(self) -> Iterator[None]:
        """Wait for the turn and hold it. Raises DBAPIError when it does not come."""
        if not self._lock.acquire(timeout=TURN_S):
            busy = sqlite3.OperationalError("database is locked")
            raise refused(busy, sql="BEGIN IMMEDIATE", kind=sqlite3.Error)
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
