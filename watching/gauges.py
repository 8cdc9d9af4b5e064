"""How things stand in the database, as gauges, read at the moment somebody scrapes.

All web processes give the same numbers here, since they read the same database: where several are scraped, take the
maximum and not the sum. Every query reads what is open, which is little, through an index; no settled award is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from math import inf

import structlog
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import Connection, func, select

from findings import Severity
from loyalty.journal import IS_OPEN, NOTE_IS_DUE, UNSETTLED, AwardState
from oauth.accounts import AccountState
from storage import queue
from storage.database import Database
from storage.tables import accounts, awards, jobs, troubles
from storage.trouble import TROUBLE, trouble_sentence

OPEN = (*UNSETTLED, AwardState.NEEDS_REVIEW)
# A job that only a newer version knows.
OTHER = "other"

log = structlog.get_logger()


class Gauges:
    """A collector of Prometheus. `job_names` are the jobs this version knows."""

    def __init__(self, database: Database, *, job_names: Collection[str], now: Callable[[], datetime]) -> None:
        self._database = database
        self._job_names = job_names
        self._now = now

    def collect(self) -> Iterable[Metric]:
        """The gauges; while the database does not answer, only that it does not."""
        try:
            with self._database.read() as tx:
                found = [*self._found(tx, self._now())]
        except TROUBLE as error:
            log.error("scrape", outcome="database_trouble", trouble=trouble_sentence(error))
            found = []
        yield _one("tallydesk_database_up", "Whether the database answers: 1 or 0.", 1 if found else 0)
        yield from found

    def _found(self, tx: Connection, now: datetime) -> Iterator[Metric]:
        counted = tx.execute(
            select(awards.c.state, func.count().label("how_many"), func.min(awards.c.created_at).label("oldest"))
            .where(IS_OPEN)
            .group_by(awards.c.state)
        ).all()
        many = {row.state: row.how_many for row in counted}
        age = {row.state: _age_s(now, row.oldest) for row in counted}
        yield _by("tallydesk_open_awards", "Awards that are not settled, by state.", "state", _all(OPEN, many))
        yield _by("tallydesk_oldest_open_award_seconds", "Age of the oldest.", "state", _all(OPEN, age))

        due = tx.execute(
            select(func.count().label("how_many"), func.min(awards.c.created_at).label("oldest")).where(NOTE_IS_DUE)
        ).one()
        yield _one("tallydesk_due_notes", "Notes on tickets that are still to be posted.", due.how_many)
        yield _one("tallydesk_oldest_due_note_seconds", "Age of the oldest one's award.", _age_s(now, due.oldest))

        waiting = dict.fromkeys(self._job_names, 0)
        for name, how_many in queue.waiting(tx, now=now).items():
            known = name if name in waiting else OTHER
            waiting[known] = waiting.get(known, 0) + how_many
        yield _by("tallydesk_waiting_jobs", "Jobs that are due and not done yet, by name.", "name", waiting)
        oldest = tx.scalar(select(func.min(jobs.c.run_at)).where(jobs.c.run_at <= now))
        yield _one("tallydesk_oldest_waiting_job_seconds", "For how long the oldest is due.", _age_s(now, oldest))
        seen = queue.last_seen(tx)
        seen_s = inf if seen is None else _age_s(now, seen)
        yield _one("tallydesk_worker_seen_seconds", "Since a worker last showed that it runs; +Inf if none.", seen_s)

        states = tx.execute(select(accounts.c.state, func.count().label("how_many")).group_by(accounts.c.state))
        known_accounts = _all(AccountState, {row.state: row.how_many for row in states})
        yield _by("tallydesk_accounts", "Helpdesk accounts, by state.", "state", known_accounts)

        found = tx.execute(select(troubles.c.severity, func.count().label("how_many")).group_by(troubles.c.severity))
        bad = (Severity.WARNING, Severity.ERROR)
        severities = _all(bad, {row.severity: row.how_many for row in found})
        yield _by("tallydesk_troubles", "What was found wrong with accounts, by severity.", "severity", severities)


def _age_s(now: datetime, then: datetime | None) -> float:
    """Seconds since `then`; 0 when there is nothing."""
    return 0.0 if then is None else max(0.0, (now - then).total_seconds())


def _all(words: Iterable[str], numbers: Mapping[str, float]) -> dict[str, float]:
    """A number for each of `words`, 0 where there is none: a series that comes and goes can have no alert."""
    return {str(word): numbers.get(str(word), 0) for word in words}


def _one(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def _by(name: str, what: str, label: str, numbers: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, what, labels=[label])
    for word, number in numbers.items():
        family.add_metric([word], number)
    return family
