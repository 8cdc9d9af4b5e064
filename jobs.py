"""Maps job names to functions. Each may run twice; the state it serves is the truth; a sweep finds what was lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from loyalty.awards import AWARD_SETTLED
from storage.database import Database
from storage.queue import Job, defer
from widget.notes import Notes

FORGOTTEN_AFTER = timedelta(minutes=2)


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended: a reason word, and when to run it again, if at all."""

    outcome: str
    again_at: datetime | None = None


class Jobs:
    """What the worker runs."""

    def __init__(self, database: Database, *, notes: Notes, now: Callable[[], datetime]) -> None:
        self._database = database
        self._notes = notes
        self._now = now
        self._functions: dict[str, Callable[[str], JobResult]] = {AWARD_SETTLED: self._post_note}

    def run(self, job: Job) -> JobResult:
        """Run one job. An unknown name is dropped: a newer version may have asked, and its sweep will ask again."""
        function = self._functions.get(job.name)
        return JobResult(outcome="unknown_job") if function is None else function(job.ref)

    def sweep(self) -> int:
        """Ask again for what is due and has no job; returns how many were looked at."""
        now = self._now()
        forgotten = self._notes.forgotten(older_than=now - FORGOTTEN_AFTER)
        with self._database.write() as tx:
            for operation_id in forgotten:
                defer(tx, AWARD_SETTLED, operation_id, run_at=now)
        return len(forgotten)

    def _post_note(self, operation_id: str) -> JobResult:
        result = self._notes.post(operation_id)
        return JobResult(outcome=result.outcome.value, again_at=result.again_at)
