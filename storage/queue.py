"""The queue: a job is a hint that something is due.

The state it serves is the truth, so that losing or repeating a job is harmless. `defer` works in the caller's
transaction: the hint exists exactly when the state does. On PostgreSQL the jobs are those of its job engine
(`storage.engine`); what else stands here is the queue of one machine, on SQLite.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects.sqlite import insert

from storage import engine
from storage.statements import run
from storage.tables import jobs, workers


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
    if tx.dialect.name == "postgresql":
        engine.defer(tx, name, ref, run_at=run_at, sooner=sooner)
        return
    run(tx, _ASK_SOONER if sooner else _ASK, name=name, ref=ref, run_at=run_at)


_NEW = insert(jobs).values({name: bindparam(name) for name in ("name", "ref", "run_at")})
_ASK = _NEW.on_conflict_do_nothing()
_ASK_SOONER = _NEW.on_conflict_do_update(
    index_elements=[jobs.c.name, jobs.c.ref],
    set_={"run_at": _NEW.excluded.run_at},
    where=and_(jobs.c.lease_owner.is_(None), jobs.c.run_at > _NEW.excluded.run_at),
)


def waiting(tx: Connection, *, now: datetime) -> dict[str, int]:
    """How many jobs are due and not done yet, by name."""
    counted = select(jobs.c.name, func.count().label("waiting")).where(jobs.c.run_at <= now).group_by(jobs.c.name)
    return {row.name: row.waiting for row in tx.execute(counted)}


def last_seen(tx: Connection) -> datetime | None:
    """When a worker last showed that it runs; None when none ever did, or the last one stopped in good order."""
    return tx.scalar(select(workers.c.last_seen_at).order_by(workers.c.last_seen_at.desc()).limit(1))


def claim(tx: Connection, *, owner: str, now: datetime, lease: timedelta) -> Job | None:
    """Take the job that is due longest, for at most `lease`; None when nothing is due."""
    free = or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now)
    due = select(jobs.c.id).where(jobs.c.run_at <= now, free).order_by(jobs.c.run_at).limit(1)
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


def show_running(tx: Connection, *, owner: str, now: datetime) -> None:
    """Say that the worker process `owner` runs; one that has said nothing for an hour is forgotten."""
    tx.execute(delete(workers).where(workers.c.last_seen_at < now - timedelta(hours=1)))
    shown = insert(workers).values(owner=owner, last_seen_at=now)
    tx.execute(shown.on_conflict_do_update(index_elements=[workers.c.owner], set_={"last_seen_at": now}))


def show_stopped(tx: Connection, *, owner: str) -> None:
    """The worker process `owner` ends in good order."""
    tx.execute(delete(workers).where(workers.c.owner == owner))
