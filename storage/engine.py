"""The job engine on PostgreSQL: Procrastinate, which keeps its jobs in the same database as the state they serve.

Here is what everyone needs who asks for a job: its schema, and asking in the caller's own transaction, by the engine's
function in the database, which belongs to the migrations of `install`. `worker.py` runs the jobs.
Source: https://procrastinate.readthedocs.io/
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

import orjson
from procrastinate.schema import SchemaManager
from sqlalchemy import Connection, text

from storage.sending import run_unseen

QUEUE = "tallydesk"

# Its lines would tell what each job is about, and its troubles with tracebacks; ours say the same in one line.
for _name in ("procrastinate", "psycopg.pool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def install(tx: Connection, *, through: str) -> None:
    """Run the engine's own migrations in `tx`, up to `through` and its parts. Called by a migration of ours alone.

    A newer engine with newer migrations takes another migration of ours, which runs those.
    """
    for script in migrations():
        if script.name[: len(through)] <= through:
            tx.exec_driver_sql(script.read_text().replace("%", "%%"))
    # Asking first looks whether the same job waits already; the engine finds its jobs by other columns.
    known = "status IN ('todo', 'doing')"
    tx.execute(text(f"CREATE INDEX tallydesk_jobs_known ON procrastinate_jobs (lock) WHERE {known}"))


def migrations() -> list[Path]:
    """The migrations that the installed engine brings, in order."""
    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))


def defer(tx: Connection, name: str, ref: str, *, run_at: datetime, sooner: bool) -> None:
    """What `storage.queue.defer` says, on PostgreSQL.

    The lock is the job's own name and reference: one of them runs at a time. It is not shared between the jobs of one
    award, because the engine runs jobs of one lock in the order in which they were asked for, and a note would wait
    for a look that is due later.
    """
    run_unseen(
        tx,
        _ASK,
        {
            "name": name,
            "queue": QUEUE,
            "lock": f"{name} {ref}",
            "args": orjson.dumps({"ref": ref}).decode(),
            "run_at": run_at,
            "sooner": sooner,
        },
    )


# In one message: asking through the engine's own objects took three times as long as writing down an award. Of two who
# ask at the same moment both may find nothing: the job is run twice, and the second time finds nothing to do. Where one
# runs, it says itself whether and when it runs again: another beside it would look twice as often.
_ASK = """
WITH known AS (
    SELECT id FROM procrastinate_jobs WHERE lock = %(lock)s AND status IN ('todo', 'doing')
), hurried AS (
    UPDATE procrastinate_jobs SET scheduled_at = %(run_at)s
    WHERE %(sooner)s AND lock = %(lock)s AND status = 'todo' AND scheduled_at > %(run_at)s
)
SELECT procrastinate_defer_jobs_v1(ARRAY[
    ROW(%(queue)s, %(name)s, 0, %(lock)s, NULL, %(args)s, %(run_at)s)::procrastinate_job_to_defer_v1
]) WHERE NOT EXISTS (SELECT FROM known)
"""
