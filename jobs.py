"""Maps job names to functions. Each may run twice; the state it serves is the truth; a sweep finds what was lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loyalty.delivery import Delivery
from loyalty.journal import AWARD_SETTLED, CONFIRM_AWARD, Journal
from loyalty.members import Members
from storage.database import Database
from storage.deliveries import DELIVERIES_KEPT, forget_deliveries
from storage.queue import Job, defer
from storage.sealing import CannotOpen
from telemetry import JOBS
from widget.notes import Notes

TROUBLE_PAUSE_S = 2.0
AFTER_CRASH = timedelta(seconds=30)
MOST_AFTER_CRASH = timedelta(hours=1)
# Each erases at most a thousand of a kind, in a transaction of its own.
MOST_ROUNDS = 20
FORGOTTEN_AFTER = timedelta(minutes=2)

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended: a reason word, and when to run it again, if at all."""

    outcome: str
    again_at: datetime | None = None


class Jobs:
    """What the workers run."""

    def __init__(
        self,
        database: Database,
        *,
        notes: Notes,
        journal: Journal,
        delivery: Delivery,
        members: Members,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._notes = notes
        self._journal = journal
        self._delivery = delivery
        self._members = members
        self._now = now
        self._functions: dict[str, Callable[[str], JobResult]] = {
            AWARD_SETTLED: self._post_note,
            CONFIRM_AWARD: self._confirm_award,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Every job that can be asked for."""
        return tuple(self._functions)

    def attend(self, job: Job) -> JobResult:
        """Run one job and tell how it ended, whatever happened: trouble is another try later. Raises nothing."""
        try:
            result = self.run(job)
        except (SQLAlchemyError, CannotOpen) as error:
            # Expected, and over soon or after someone mends it: one line, and another try.
            log.error("job", job=job.name, outcome="storage_trouble", kind=type(error).__name__, attempt=job.attempts)
            pause = timedelta(seconds=min(TROUBLE_PAUSE_S * job.attempts, 60))
            result = JobResult(outcome="storage_trouble", again_at=self._now() + pause)
        except Exception:
            # A bug must not lose the job: it is tried again, and the traceback is for us.
            log.exception("job", job=job.name, outcome="crashed", attempt=job.attempts)
            pause = min(AFTER_CRASH * 2 ** min(job.attempts - 1, 10), MOST_AFTER_CRASH)
            result = JobResult(outcome="crashed", again_at=self._now() + pause)
        JOBS.labels(job.name, result.outcome).inc()
        log.info("job", job=job.name, outcome=result.outcome, attempt=job.attempts)
        return result

    def run(self, job: Job) -> JobResult:
        """Run one job. An unknown name is dropped: a newer version may have asked, and its sweep will ask again."""
        function = self._functions.get(job.name)
        return JobResult(outcome="unknown_job") if function is None else function(job.ref)

    def sweep(self) -> int:
        """Ask again for what is due and has no job, and erase what is kept no longer; returns how many there were."""
        now = self._now()
        forgotten = [
            *((AWARD_SETTLED, ref) for ref in self._notes.forgotten(older_than=now - FORGOTTEN_AFTER)),
            *((CONFIRM_AWARD, ref) for ref in self._journal.forgotten()),
        ]
        with self._database.write() as tx:
            for name, ref in forgotten:
                defer(tx, name, ref, run_at=now)
        erased = 0
        for _ in range(MOST_ROUNDS):
            round_ = self._members.sweep() + forget_deliveries(self._database, older_than=now - DELIVERIES_KEPT)
            erased += round_
            if not round_:
                break
        return len(forgotten) + erased

    def _confirm_award(self, operation_id: str) -> JobResult:
        look = self._delivery.confirm(operation_id)
        return JobResult(outcome=look.outcome.value, again_at=look.again_at)

    def _post_note(self, operation_id: str) -> JobResult:
        result = self._notes.post(operation_id)
        return JobResult(outcome=result.outcome.value, again_at=result.again_at)
