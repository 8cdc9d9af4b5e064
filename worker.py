"""The embedded runner: takes jobs from the queue and runs them, for one machine with SQLite.

Several threads, so that a slow helpdesk holds up the notes of others only when it holds all of them. On SIGTERM it
claims nothing more, finishes what runs and leaves; a job it could not finish is taken up again when its lease ends.
On PostgreSQL its job engine runs the same jobs: `engine_worker.py`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs import Jobs
from storage.database import Database
from storage.queue import any_due, claim, finish, put_back, show_running, show_stopped
from storage.sealing import RandomBytes

THREADS = 8
# Longer than a job's longest run: a few calls to Gorgias, each with its timeouts and its patience.
LEASE = timedelta(minutes=2)
IDLE_S = 0.5
SHOW_EVERY_S = 10.0
SWEEP_EVERY = 6  # shows
TROUBLE_PAUSE_S = 2.0

log = structlog.get_logger()


class Worker(Protocol):
    """What `flask worker` runs."""

    def run_forever(self) -> None:
        """Run jobs until SIGTERM or SIGINT; returns when what was running is finished."""


class EmbeddedWorker:
    """Runs the jobs of a SQLite database until it is stopped."""

    def __init__(
        self, database: Database, *, jobs: Jobs, now: Callable[[], datetime], random_bytes: RandomBytes
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._now = now
        self._random_bytes = random_bytes

    def run_one(self) -> bool:
        """Claim and run one job; False when nothing was due."""
        owner = self._random_bytes(12).hex()
        with self._database.read() as tx:
            # Most polls find nothing: look before taking the write lock.
            if not any_due(tx, now=self._now()):
                return False
        with self._database.write() as tx:
            job = claim(tx, owner=owner, now=self._now(), lease=LEASE)
        if job is None:
            return False
        result = self._jobs.attend(job)
        with self._database.write() as tx:
            if result.again_at is None:
                finish(tx, job, owner=owner)
            else:
                put_back(tx, job, owner=owner, run_at=result.again_at)
        return True

    def run_forever(self) -> None:
        """Run until SIGTERM or SIGINT; returns when what was running is finished."""
        # A queue, because putting into it is the one thing that is safe wherever a signal strikes.
        signals: SimpleQueue[int] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: signals.put(number))
        owner = self._random_bytes(12).hex()
        stopping = threading.Event()
        threads = [threading.Thread(target=self._loop, args=(stopping,), name=f"worker-{n}") for n in range(THREADS)]
        for thread in threads:
            thread.start()
        log.info("worker", outcome="started")
        shows = 0
        while not stopping.is_set():
            self._guarded(lambda: self._show(owner))
            self._guarded(self._jobs.sweep if shows % SWEEP_EVERY == 0 else self._jobs.ask_again)
            shows += 1
            with suppress(Empty):
                signals.get(timeout=SHOW_EVERY_S)
                stopping.set()
        for thread in threads:
            thread.join()
        self._guarded(lambda: self._leave(owner))
        log.info("worker", outcome="stopped")

    def _loop(self, stopping: threading.Event) -> None:
        """Take one job after the other until `stopping`; nothing more is claimed then."""
        while not stopping.is_set():
            done = self._guarded(self.run_one)
            if not done:
                stopping.wait(TROUBLE_PAUSE_S if done is None else IDLE_S)

    def _guarded(self, step: Callable[[], object]) -> object:
        """A database that is away for a while must not end the worker. None when it was."""
        try:
            return step()
        except SQLAlchemyError as error:
            log.error("worker", outcome="database_trouble", kind=type(error).__name__)
            return None

    def _show(self, owner: str) -> bool:
        with self._database.write() as tx:
            show_running(tx, owner=owner, now=self._now())
        return True

    def _leave(self, owner: str) -> bool:
        with self._database.write() as tx:
            show_stopped(tx, owner=owner)
        return True
