"""The queue: a job is a hint that something is due.

The state it serves is the truth, so that losing or repeating a job is harmless. `defer` works in the caller's
transaction: the hint exists exactly when the state does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from storage.tables import jobs


@dataclass(frozen=True, kw_only=True)
class Job:
    """One claimed job. `attempts` counts this run: the first run has 1."""

    id: int
    name: str
    ref: str
    attempts: int


def defer(tx: Connection, name: str, ref: str, *, run_at: datetime, sooner: bool = False) -> None:
    """Ask for `name` to be run on `ref` at `run_at`. Asking again while it waits changes nothing.

    `sooner`: one that waits, and is not running, is brought forward to `run_at`.
    """
    insert = sqlite_insert if tx.dialect.name == "sqlite" else postgresql_insert
    asked = insert(jobs).values(name=name, ref=ref, run_at=run_at)
    if sooner:
        asked = asked.on_conflict_do_update(
            index_elements=[jobs.c.name, jobs.c.ref],
            set_={"run_at": run_at},
            where=and_(jobs.c.lease_owner.is_(None), jobs.c.run_at > run_at),
        )
    else:
        asked = asked.on_conflict_do_nothing()
    tx.execute(asked)


def claim(tx: Connection, *, owner: str, now: datetime, lease: timedelta) -> Job | None:
    """Take the job that is due longest, for at most `lease`; None when nothing is due."""
    free = or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now)
    due = select(jobs.c.id).where(jobs.c.run_at <= now, free).order_by(jobs.c.run_at).limit(1)
    # On PostgreSQL a rival may be taking the same job: take the next one instead of waiting to find it gone.
    due = due.with_for_update(skip_locked=True)
    row = tx.execute(
        update(jobs)
        .where(jobs.c.id == due.scalar_subquery())
        .values(lease_owner=owner, lease_until=now + lease, attempts=jobs.c.attempts + 1)
        .returning(jobs.c.id, jobs.c.name, jobs.c.ref, jobs.c.attempts)
    ).one_or_none()
    return None if row is None else Job(id=row.id, name=row.name, ref=row.ref, attempts=row.attempts)


def finish(tx: Connection, job: Job, *, owner: str) -> None:
    """The job is done, or given up."""
    tx.execute(delete(jobs).where(jobs.c.id == job.id, jobs.c.lease_owner == owner))


def put_back(tx: Connection, job: Job, *, owner: str, run_at: datetime) -> None:
    """Run the job again at `run_at`."""
    tx.execute(
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.lease_owner == owner)
        .values(run_at=run_at, lease_owner=None, lease_until=None)
    )


def any_due(tx: Connection, *, now: datetime) -> bool:
    """Whether `claim` would find something."""
    free = or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now)
    return tx.scalar(select(jobs.c.id).where(jobs.c.run_at <= now, free).limit(1)) is not None
