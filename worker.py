"""The embedded runner: takes jobs from the queue and runs them, for one machine.

Several threads, so that one slow helpdesk does not hold up the notes of the others. On SIGTERM it claims nothing more,
finishes what runs and leaves; a job it could not finish is taken up again when its lease ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs import Jobs
from storage.database import Database
from storage.queue import Job, any_due, claim, finish, put_back
from storage.sealing import RandomBytes
from telemetry import JOBS

THREADS = 4
# Longer than a job's longest run: a few calls to Gorgias, each with its timeouts and its patience.
LEASE = timedelta(minutes=2)
IDLE_S = 0.5
SWEEP_EVERY_S = 60.0
AFTER_CRASH = timedelta(seconds=30)

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
        self._stopping = threading.Event()

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
        except Exception:
            # A bug must not lose the job: it is tried again, and the traceback is for us.
            log.exception("job", job=job.name, outcome="crashed", attempt=job.attempts)
            outcome, again_at = "crashed", self._now() + AFTER_CRASH
        with self._database.write() as tx:
            if again_at is None:
                finish(tx, job, owner=owner)
            else:
                put_back(tx, job, owner=owner, run_at=again_at)
        JOBS.labels(job.name, outcome).inc()
        log.info("job", job=job.name, outcome=outcome, attempt=job.attempts)

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping.set()

    def run_forever(self) -> None:
        """Run until SIGTERM or SIGINT; returns when what was running is finished."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        threads = [threading.Thread(target=self._loop, name=f"worker-{n}") for n in range(THREADS)]
        for thread in threads:
            thread.start()
        log.info("worker", outcome="started")
        while True:
            self._guarded(self._jobs.sweep)
            if self._stopping.wait(SWEEP_EVERY_S):
                break
        for thread in threads:
            thread.join()
        log.info("worker", outcome="stopped")

    def _loop(self) -> None:
        while not self._stopping.is_set():
            if not self._guarded(self.run_one):
                self._stopping.wait(IDLE_S)

    def _guarded(self, step: Callable[[], object]) -> object:
        """A database that is away for a while must not end the worker."""
        try:
            return step()
        except SQLAlchemyError as error:
            log.error("worker", outcome="database_trouble", kind=type(error).__name__)
            return None
