"""Maps job names to functions. Each may run twice; the state it serves is the truth; a sweep finds what was lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from loyalty.delivery import Delivery
from loyalty.journal import AWARD_SETTLED, CONFIRM_AWARD, Journal
from loyalty.members import Members
from storage.database import Database
from storage.deliveries import DELIVERIES_KEPT, forget_deliveries
from storage.queue import Job, defer
from widget.notes import Notes

# Each erases at most a thousand of a kind, in a transaction of its own.
MOST_ROUNDS = 20
FORGOTTEN_AFTER = timedelta(minutes=2)


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended: a reason word, and when to run it again, if at all."""

    outcome: str
    again_at: datetime | None = None


class Jobs:
    """What the worker runs."""

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
