"""The job engine on PostgreSQL: Procrastinate, which keeps its jobs in the same database as the state they serve.

Here is what everyone needs who asks for a job: its schema, and asking in the caller's own transaction. `worker.py` runs
the jobs. Source: https://procrastinate.readthedocs.io/
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from procrastinate import App, PsycopgConnector
from procrastinate.schema import SchemaManager
from sqlalchemy import Connection, text

QUEUE = "tallydesk"

# Its lines would tell what each job is about, and its troubles with tracebacks; ours say the same in one line.
for _name in ("procrastinate", "psycopg.pool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

# Never opened: a job is asked for on the connection of whoever asks.
_app = App(connector=PsycopgConnector())


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
    lock = f"{name} {ref}"
    known = tx.execute(
        text(
            "SELECT id, status, scheduled_at FROM procrastinate_jobs WHERE lock = :lock AND status IN ('todo', 'doing')"
        ),
        {"lock": lock},
    ).all()
    if sooner and any(job.status == "todo" and job.scheduled_at > run_at for job in known):
        tx.execute(
            text("UPDATE procrastinate_jobs SET scheduled_at = :run_at WHERE lock = :lock AND status = 'todo'"),
            {"lock": lock, "run_at": run_at},
        )
    # One that runs says itself whether and when it runs again: a second one beside it would look twice as often.
    if known:
        return
    # Two who ask at the same moment may both come here: the job is run twice, and the second time finds nothing to do.
    _app.configure_task(
        name, lock=lock, queue=QUEUE, schedule_at=run_at, connection=tx.connection.driver_connection
    ).defer(ref=ref)
