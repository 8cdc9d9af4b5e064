"""Asking PostgreSQL's job engine: in the caller's transaction, once while it waits, in the schema that is installed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, func, select, text

from storage import engine
from storage.database import Database
from storage.queue import defer, last_seen, waiting
from storage.tables import jobs
from tests.databases import Clock


def test_asking_twice_while_it_waits_is_asking_once(postgres_database: Database, clock: Clock) -> None:
    for ref in ("op-1", "op-1", "op-2"):
        _defer(postgres_database, "note", ref, run_at=clock())
    _defer(postgres_database, "look", "op-1", run_at=clock())
    assert _waiting(postgres_database) == [("look", "op-1"), ("note", "op-1"), ("note", "op-2")]


def test_a_hint_lives_and_dies_with_the_state_it_serves(postgres_database: Database, clock: Clock) -> None:
    with postgres_database.engine.connect() as tx:
        defer(tx, "note", "op-1", run_at=clock())
        tx.rollback()
    assert _waiting(postgres_database) == []
    _defer(postgres_database, "note", "op-1", run_at=clock() + timedelta(hours=1))
    with postgres_database.engine.connect() as tx:
        defer(tx, "note", "op-1", run_at=clock(), sooner=True)
        tx.rollback()
    assert _run_at(postgres_database) == clock() + timedelta(hours=1)


def test_what_waits_can_be_brought_forward_and_is_never_put_off(postgres_database: Database, clock: Clock) -> None:
    for seconds in (90, 10, 30):
        _defer(postgres_database, "note", "op-1", run_at=clock() + timedelta(seconds=seconds), sooner=seconds != 90)
    assert _waiting(postgres_database) == [("note", "op-1")]
    assert _run_at(postgres_database) == clock() + timedelta(seconds=10)


def test_a_running_job_is_not_asked_for_again_and_its_own_word_counts(
    postgres_database: Database, clock: Clock
) -> None:
    """Else it would run beside itself, or again before the time that it asks for."""
    _defer(postgres_database, "note", "op-1", run_at=clock())
    with postgres_database.write() as tx:
        assert _fetch(tx) == "note op-1"
    _defer(postgres_database, "note", "op-1", run_at=clock(), sooner=True)
    assert _waiting(postgres_database) == [("note", "op-1")]
    with postgres_database.write() as tx:
        assert _fetch(tx) is None, "one of them at a time"


def test_jobs_of_one_award_do_not_wait_for_each_other(postgres_database: Database, clock: Clock) -> None:
    _defer(postgres_database, "look", "op-1", run_at=datetime.now(UTC) + timedelta(hours=1))
    _defer(postgres_database, "note", "op-1", run_at=clock())
    with postgres_database.write() as tx:
        assert _fetch(tx) == "note op-1"


def test_what_is_due_is_counted_by_name(postgres_database: Database, clock: Clock) -> None:
    for name, ref, late in (("note", "op-1", 1), ("note", "op-2", 0), ("look", "op-1", -5)):
        _defer(postgres_database, name, ref, run_at=clock() - timedelta(seconds=late))
    with postgres_database.read() as tx:
        assert waiting(tx, now=clock()) == {"note": 2}


def test_a_worker_that_shows_itself_is_seen(postgres_database: Database) -> None:
    with postgres_database.write() as tx:
        assert last_seen(tx) is None
        tx.execute(text("SELECT * FROM procrastinate_register_worker_v1()"))
        seen = last_seen(tx)
    assert seen is not None
    assert abs(datetime.now(UTC) - seen) < timedelta(minutes=1)


def test_every_migration_of_the_installed_engine_is_in_one_of_ours(postgres_database: Database) -> None:
    """A newer engine with a newer schema needs a migration of ours that names what it adds."""
    newest = engine.migrations()[-1].name
    assert newest.startswith("03.04.00_50"), f"add a migration that installs the engine's schema through {newest}"


def _defer(database: Database, name: str, ref: str, *, run_at: datetime, sooner: bool = False) -> None:
    with database.write() as tx:
        defer(tx, name, ref, run_at=run_at, sooner=sooner)


def _waiting(database: Database) -> list[tuple[str, str]]:
    with database.read() as tx:
        return [(row.name, row.ref) for row in tx.execute(select(jobs).order_by(jobs.c.name, jobs.c.ref))]


def _run_at(database: Database) -> datetime:
    with database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(jobs)) == 1
        run_at: datetime = tx.scalars(select(jobs.c.run_at)).one()
        return run_at


def _fetch(tx: Connection) -> str | None:
    """The lock of the job that the engine would run now; it counts as running from here on."""
    found: str | None = tx.scalar(text("SELECT lock FROM procrastinate_fetch_job_v2(NULL, NULL)"))
    return found
