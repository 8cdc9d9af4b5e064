"""Which process may write to a SQLite file next, on this machine."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from threading import Event, Lock, Thread
from time import monotonic

from storage.sending import refused
from threads import aside


class Turns:
    """One process after the other, each woken as soon as the last has ended.

    SQLite itself lets writers look again after growing pauses, so that under load some wait for seconds while others
    pass. Here a process waits with the kernel's lock on an empty file beside the database, which ends with whoever held
    it. Programs that do not take turns (a backup, a shell) are still waited for as SQLite does.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._file: int | None = None

    def take(self, *, until: float) -> int:
        """Wait for the turn and hold it; the descriptor for `give_back`. For one thread at a time.

        Raises DBAPIError when it does not come before `until`, on the monotonic clock.
        """
        try:
            if self._file is None:
                self._file = self._open()
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._file
            except BlockingIOError:
                waiting = _Waiting(self._open())
        except OSError as error:
            unable = sqlite3.OperationalError("unable to open database file")
            raise refused(unable, sql="BEGIN IMMEDIATE", kind=sqlite3.Error) from error
        return waiting.result(until)

    def give_back(self, file: int) -> None:
        """End the turn."""
        if file == self._file:
            fcntl.flock(file, fcntl.LOCK_UN)
        else:
            os.close(file)

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        file = os.open(f"{self._database}-turn", os.O_RDWR | os.O_CREAT, 0o600)
        if os.geteuid() == 0:
            # A command run by root must not shut out the service whose database it is.
            owner = os.stat(self._database)
            os.fchown(file, owner.st_uid, owner.st_gid)
        return file


class _Waiting:
    """A thread that waits for the kernel's lock, which knows no limit of time: whoever has waited enough goes without,
    and the lock is given back when it comes. Looking again and again instead would lose against whoever is faster."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._come = Event()
        self._guard = Lock()
        self._given_up = False
        Thread(target=self._wait, name="turn", daemon=True).start()

    def result(self, until: float) -> int:
        """The descriptor, once it holds the lock. Raises DBAPIError when it does not before `until`."""
        taken = False
        try:
            with aside():
                taken = self._come.wait(max(0.0, until - monotonic()))
        finally:
            with self._guard:
                if not taken and self._come.is_set():
                    os.close(self._file)
                self._given_up = not taken
        if not taken:
            raise busy()
        return self._file

    def _wait(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self._guard:
            if self._given_up:
                os.close(self._file)
            else:
                self._come.set()


def busy() -> Exception:
    """What SQLite says to whoever has waited long enough."""
    return refused(sqlite3.OperationalError("database is locked"), sql="BEGIN IMMEDIATE", kind=sqlite3.Error)
