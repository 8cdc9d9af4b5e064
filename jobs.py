"""Maps job names to functions. Each may run twice; the state it serves is the truth; a sweep finds what was lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from console.changes import CHANGES_KEPT
from loyalty.attempts import ATTEMPTS_KEPT
from loyalty.delivery import Delivery
from loyalty.journal import AWARD_SETTLED, CONFIRM_AWARD, Journal
from loyalty.members import Members
from notices import Notices
from oauth.accounts import GIVE_UP_ACCOUNT, REFRESH_TOKEN, Accounts, Refreshed
from privacy.retention import Retention
from storage.database import Database, erase_older
from storage.deliveries import DELIVERIES_KEPT
from storage.queue import Job, defer
from storage.sealing import CannotOpen
from storage.tables import award_attempts, changes, inspected_requests, webhook_deliveries
from telemetry import JOBS, telling_with_every_line
from troubles import TELL_TROUBLE, Troubles
from widget.inspector import INSPECTED_KEPT
from widget.leaving import Leaving
from widget.notes import Notes
from widget.placement import PlacementFailed
from widget.probe import PROBE_ACCOUNT, Probe

TROUBLE_PAUSE_S = 2.0
AFTER_CRASH = timedelta(seconds=30)
MOST_AFTER_CRASH = timedelta(hours=1)
# Each erases at most a thousand of a kind, in a transaction of its own.
MOST_ROUNDS = 20
FORGOTTEN_AFTER = timedelta(minutes=2)

# By the column that tells how old a row is.
KEPT = (
    (webhook_deliveries.c.received_at, DELIVERIES_KEPT),
    (changes.c.at, CHANGES_KEPT),
    (award_attempts.c.at, ATTEMPTS_KEPT),
    (inspected_requests.c.at, INSPECTED_KEPT),
)

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
        accounts: Accounts,
        leaving: Leaving,
        notes: Notes,
        journal: Journal,
        delivery: Delivery,
        members: Members,
        retention: Retention,
        probe: Probe,
        troubles: Troubles,
        notices: Notices,
        give_up_after: timedelta,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._leaving = leaving
        self._notes = notes
        self._journal = journal
        self._delivery = delivery
        self._members = members
        self._retention = retention
        self._probe = probe
        self._troubles = troubles
        self._notices = notices
        self._give_up_after = give_up_after
        self._now = now
        self._functions: dict[str, Callable[[str], JobResult]] = {
            AWARD_SETTLED: self._post_note,
            CONFIRM_AWARD: self._confirm_award,
            REFRESH_TOKEN: self._refresh_token,
            GIVE_UP_ACCOUNT: self._give_up_account,
            PROBE_ACCOUNT: self._probe_account,
            TELL_TROUBLE: self._tell_trouble,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Every job that can be asked for."""
        return tuple(self._functions)

    def attend(self, job: Job) -> JobResult:
        """Run one job and tell how it ended, whatever happened: trouble is another try later. Raises nothing."""
        # In every line that the job logs.
        with telling_with_every_line(job=job.name, job_id=job.id):
            return self._attend(job)

    def _attend(self, job: Job) -> JobResult:
        try:
            result = self.run(job)
        except (SQLAlchemyError, CannotOpen) as error:
            # Expected, and over soon or after someone mends it: one line, and another try.
            pause = timedelta(seconds=min(TROUBLE_PAUSE_S * job.attempts, 60))
            result = JobResult(outcome="storage_trouble", again_at=self._now() + pause)
            log.error("job", outcome=result.outcome, attempt=job.attempts, kind=type(error).__name__)
        except Exception:
            # A bug must not lose the job: it is tried again, and the traceback is for us.
            pause = min(AFTER_CRASH * 2 ** min(job.attempts - 1, 10), MOST_AFTER_CRASH)
            result = JobResult(outcome="crashed", again_at=self._now() + pause)
            log.exception("job", outcome=result.outcome, attempt=job.attempts)
        else:
            log.info("job", outcome=result.outcome, attempt=job.attempts)
        JOBS.labels(job.name, result.outcome).inc()
        return result

    def run(self, job: Job) -> JobResult:
        """Run one job. An unknown name is dropped: a newer version may have asked, and its sweep will ask again."""
        function = self._functions.get(job.name)
        return JobResult(outcome="unknown_job") if function is None else function(job.ref)

    def sweep(self) -> int:
        """What `ask_again` does, and erase what is kept no longer; returns how many there were."""
        asked = self.ask_again()
        erased = self._retention.sweep()
        for _ in range(MOST_ROUNDS):
            round_ = self._members.sweep()
            round_ += sum(erase_older(self._database, time, than=self._now() - kept) for time, kept in KEPT)
            erased += round_
            if not round_:
                break
        return asked + erased

    def ask_again(self) -> int:
        """Ask again for what is due and has no job; returns how many there were."""
        now = self._now()
        forgotten = [
            *((AWARD_SETTLED, ref) for ref in self._notes.forgotten(older_than=now - FORGOTTEN_AFTER)),
            *((CONFIRM_AWARD, ref) for ref in self._journal.forgotten()),
            *((REFRESH_TOKEN, ref) for ref in self._accounts.due()),
            *((GIVE_UP_ACCOUNT, ref) for ref in self._accounts.abandoned(since=now - self._give_up_after)),
            *((PROBE_ACCOUNT, ref) for ref in self._probe.due()),
            *((TELL_TROUBLE, ref) for ref in self._troubles.forgotten(older_than=now - FORGOTTEN_AFTER)),
        ]
        with self._database.write() as tx:
            for name, ref in forgotten:
                defer(tx, name, ref, run_at=now)
        return len(forgotten)

    def _confirm_award(self, operation_id: str) -> JobResult:
        look = self._delivery.confirm(operation_id)
        return JobResult(outcome=look.outcome.value, again_at=look.again_at)

    def _refresh_token(self, account_id: str) -> JobResult:
        renewal = self._accounts.renew(int(account_id))
        if renewal.living is None:
            return JobResult(outcome=renewal.outcome.value, again_at=renewal.again_at)
        try:
            self._leaving.after_uninstall(int(account_id), living=renewal.living)
        except PlacementFailed as error:
            return JobResult(outcome=error.problem.value, again_at=renewal.again_at)
        return JobResult(outcome=Refreshed.UNINSTALLED.value)

    def _give_up_account(self, account_id: str) -> JobResult:
        try:
            given_up = self._leaving.give_up(int(account_id), since=self._now() - self._give_up_after)
        except PlacementFailed as error:
            return JobResult(outcome=error.problem.value, again_at=self._now() + FORGOTTEN_AFTER)
        return JobResult(outcome="given_up" if given_up else "not_due")

    def _post_note(self, operation_id: str) -> JobResult:
        result = self._notes.post(operation_id)
        return JobResult(outcome=result.outcome.value, again_at=result.again_at)

    def _probe_account(self, account_id: str) -> JobResult:
        result = self._probe.probe(int(account_id))
        return JobResult(outcome=result.outcome.value, again_at=result.again_at)

    def _tell_trouble(self, account_id: str) -> JobResult:
        result = self._notices.tell(int(account_id))
        if result.again_at is None:
            self._probe.forget_if_disconnected(int(account_id))
        return JobResult(outcome=result.outcome.value, again_at=result.again_at)
