"""The embedded runner: takes jobs from the queue and runs them, for one machine.

Several threads, so that a slow helpdesk holds up the notes of others only when it holds all of them. On SIGTERM it
claims nothing more, finishes what runs and leaves; a job it could not finish is taken up again when its lease ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs import Jobs
from storage.database import Database
from storage.queue import Job, any_due, claim, finish, put_back
from storage.sealing import CannotOpen, RandomBytes
from telemetry import JOBS

THREADS = 8
# Longer than a job's longest run: a few calls to Gorgias, each with its timeouts and its patience.
LEASE = timedelta(minutes=2)
IDLE_S = 0.5
SWEEP_EVERY_S = 60.0
TROUBLE_PAUSE_S = 2.0
AFTER_CRASH = timedelta(seconds=30)
MOST_AFTER_CRASH = timedelta(hours=1)

log = structlog.get_logger()


class Worker:
    """Runs jobs until it is stopped."""

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
        self._run(job, owner=owner)
        return True

    def _run(self, job: Job, *, owner: str) -> None:
        try:
            result = self._jobs.run(job)
            outcome, again_at = result.outcome, result.again_at
        except (SQLAlchemyError, CannotOpen) as error:
            # Expected, and over soon or after someone mends it: one line, and another try.
            log.error("job", job=job.name, outcome="storage_trouble", kind=type(error).__name__, attempt=job.attempts)
            again_at = self._now() + timedelta(seconds=min(TROUBLE_PAUSE_S * job.attempts, 60))
            outcome = "storage_trouble"
        except Exception:
            # A bug must not lose the job: it is tried again, and the traceback is for us.
            log.exception("job", job=job.name, outcome="crashed", attempt=job.attempts)
            pause = min(AFTER_CRASH * 2 ** min(job.attempts - 1, 10), MOST_AFTER_CRASH)
            outcome, again_at = "crashed", self._now() + pause
        with self._database.write() as tx:
            if again_at is None:
                finish(tx, job, owner=owner)
            else:
                put_back(tx, job, owner=owner, run_at=again_at)
        JOBS.labels(job.name, outcome).inc()
        log.info("job", job=job.name, outcome=outcome, attempt=job.attempts)

    def run_forever(self) -> None:
        """Run until SIGTERM or SIGINT; returns when what was running is finished."""
        # A queue, because putting into it is the one thing that is safe wherever a signal strikes.
        signals: SimpleQueue[int] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: signals.put(number))
        stopping = threading.Event()
        threads = [threading.Thread(target=self._loop, args=(stopping,), name=f"worker-{n}") for n in range(THREADS)]
        for thread in threads:
            thread.start()
        log.info("worker", outcome="started")
        while not stopping.is_set():
            self._guarded(self._jobs.sweep)
            with suppress(Empty):
                signals.get(timeout=SWEEP_EVERY_S)
                stopping.set()
        for thread in threads:
            thread.join()
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
