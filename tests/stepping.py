"""A worker that takes one step when it is told to, on a clock that tests move.

On SQLite it is the embedded runner itself. PostgreSQL's job engine runs by the database's own clock: here its jobs are
claimed by the test's clock, run by the same function and ended by the engine's own functions. A job that nobody ended
is taken up again when the lease has passed, as if its worker had been found lost. Real workers are in tests/processes.
"""

from __future__ import annotations

from sqlalchemy import text

from services import Services
from storage.queue import Job
from worker import LEASE, EmbeddedWorker

_CLAIM = text(
    "UPDATE procrastinate_jobs SET status = 'doing', scheduled_at = :lease_until, attempts = attempts + lost.again"
    " FROM (SELECT id, (status = 'doing')::int AS again FROM procrastinate_jobs AS job"
    "  WHERE (status = 'todo' AND scheduled_at <= :now AND NOT EXISTS (SELECT 1 FROM procrastinate_jobs AS other"
    "   WHERE other.lock = job.lock AND other.status = 'doing')) OR (status = 'doing' AND scheduled_at < :now)"
    "  ORDER BY scheduled_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) AS lost"
    " WHERE procrastinate_jobs.id = lost.id RETURNING procrastinate_jobs.*"
)


def run_one(services: Services) -> bool:
    """Claim and run one job; False when nothing was due."""
    worker = services.worker
    if isinstance(worker, EmbeddedWorker):
        return worker.run_one()
    now = services.now()
    with services.database.write() as tx:
        row = tx.execute(_CLAIM, {"now": now, "lease_until": now + LEASE}).one_or_none()
    if row is None:
        return False
    result = services.jobs.attend(Job(id=row.id, name=row.task_name, ref=row.args["ref"], attempts=row.attempts + 1))
    with services.database.write() as tx:
        if result.again_at is None:
            tx.execute(text("SELECT procrastinate_finish_job_v1(:id, 'succeeded', true)"), {"id": row.id})
        else:
            tx.execute(
                text("SELECT procrastinate_retry_job_v2(:id, :at, NULL, NULL, NULL)"),
                {"id": row.id, "at": result.again_at},
            )
    return True
