"""The queue: a hint is kept once, run by one at a time, and comes back when its runner is lost.

Asking is the same everywhere. Running is here that of one machine; PostgreSQL's engine is in test_engine.py.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

from sqlalchemy import func, select

from storage.database import Database
from storage.queue import Job, any_due, claim, defer, finish, put_back
from storage.tables import jobs
from tests.databases import Clock

LEASE = timedelta(seconds=60)


def test_asking_twice_is_asking_once(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock())
    _defer(sqlite_database, "note", "op-1", run_at=clock() + LEASE)
    _defer(sqlite_database, "note", "op-2", run_at=clock() + LEASE)
    assert _count(sqlite_database) == 2
    job = _claim(sqlite_database, "me", clock)
    assert job is not None
    assert (job.name, job.ref, job.attempts) == ("note", "op-1", 1), "the first time asked for stands"


def test_a_hint_lives_and_dies_with_the_state_it_serves(sqlite_database: Database, clock: Clock) -> None:
    """`defer` works in the caller's transaction: rolled back with it."""
    with sqlite_database.engine.connect() as tx:
        defer(tx, "note", "op-1", run_at=clock())
        tx.rollback()
    assert _count(sqlite_database) == 0


def test_what_is_not_due_is_not_claimed(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock() + timedelta(seconds=5))
    assert _claim(sqlite_database, "me", clock) is None
    assert not _any_due(sqlite_database, clock)
    clock.advance(5)
    assert _any_due(sqlite_database, clock)
    assert _claim(sqlite_database, "me", clock) is not None


def test_what_is_due_longest_is_claimed_first(sqlite_database: Database, clock: Clock) -> None:
    for ref, late in (("young", 1), ("old", 9), ("middle", 5)):
        _defer(sqlite_database, "note", ref, run_at=clock() - timedelta(seconds=late))
    claimed = [_claim(sqlite_database, "me", clock) for _ in range(4)]
    assert [job and job.ref for job in claimed] == ["old", "middle", "young", None]


def test_a_job_is_run_by_one_at_a_time(sqlite_database: Database, clock: Clock) -> None:
    """Four workers empty a queue of forty: each job goes to exactly one of them, and none is left behind."""
    for number in range(40):
        _defer(sqlite_database, "note", f"op-{number}", run_at=clock())
    barrier = threading.Barrier(4)
    claimed: list[str] = []

    def work(owner: str) -> None:
        barrier.wait()
        while job := _claim(sqlite_database, owner, clock):
            claimed.append(job.ref)

    threads = [threading.Thread(target=work, args=(f"worker {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(f"op-{number}" for number in range(40))


def test_a_lost_worker_loses_its_job_when_the_lease_ends(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock())
    lost = _claim(sqlite_database, "lost", clock)
    assert lost is not None
    clock.advance(60)
    assert _claim(sqlite_database, "next", clock) is None, "the lease still holds"
    clock.advance(1)
    again = _claim(sqlite_database, "next", clock)
    assert again is not None
    assert again.attempts == 2

    with sqlite_database.write() as tx:
        finish(tx, lost, owner="lost")
        put_back(tx, lost, owner="lost", run_at=clock())
    assert _count(sqlite_database) == 1, "who lost the lease has no say any more"
    assert _claim(sqlite_database, "third", clock) is None


def test_a_finished_job_is_gone_and_may_be_asked_for_again(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock())
    job = _claim(sqlite_database, "me", clock)
    assert job is not None
    with sqlite_database.write() as tx:
        finish(tx, job, owner="me")
    assert _count(sqlite_database) == 0
    _defer(sqlite_database, "note", "op-1", run_at=clock())
    assert _any_due(sqlite_database, clock)


def test_a_job_that_is_put_back_waits_and_remembers_its_attempts(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock())
    job = _claim(sqlite_database, "me", clock)
    assert job is not None
    with sqlite_database.write() as tx:
        put_back(tx, job, owner="me", run_at=clock() + timedelta(seconds=15))
    assert _claim(sqlite_database, "me", clock) is None
    clock.advance(15)
    again = _claim(sqlite_database, "other", clock)
    assert again is not None
    assert again.attempts == 2


def test_what_waits_can_be_brought_forward_and_is_never_put_off(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock() + timedelta(seconds=90))
    _defer(sqlite_database, "note", "op-1", run_at=clock() + timedelta(seconds=10), sooner=True)
    _defer(sqlite_database, "note", "op-1", run_at=clock() + timedelta(seconds=30), sooner=True)
    assert _count(sqlite_database) == 1
    clock.advance(9)
    assert _claim(sqlite_database, "me", clock) is None
    clock.advance(1)
    job = _claim(sqlite_database, "me", clock)
    assert job is not None
    assert job.attempts == 1


def test_what_does_not_wait_yet_is_asked_for_as_usual(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock() + timedelta(seconds=5), sooner=True)
    assert _claim(sqlite_database, "me", clock) is None
    clock.advance(5)
    assert _claim(sqlite_database, "me", clock) is not None


def test_only_the_job_that_is_meant_is_brought_forward(sqlite_database: Database, clock: Clock) -> None:
    later = clock() + timedelta(seconds=90)
    for name, ref in (("note", "op-1"), ("note", "op-2"), ("award", "op-1")):
        _defer(sqlite_database, name, ref, run_at=later)
    _defer(sqlite_database, "note", "op-1", run_at=clock(), sooner=True)
    claimed = [_claim(sqlite_database, "me", clock) for _ in range(2)]
    assert [job and (job.name, job.ref) for job in claimed] == [("note", "op-1"), None]


def test_a_running_job_is_not_brought_forward_and_its_own_word_counts(sqlite_database: Database, clock: Clock) -> None:
    """Else it would be run by two at once, or again before the time that its runner asks for."""
    _defer(sqlite_database, "note", "op-1", run_at=clock())
    job = _claim(sqlite_database, "me", clock)
    assert job is not None
    _defer(sqlite_database, "note", "op-1", run_at=clock() - timedelta(seconds=30), sooner=True)
    assert _claim(sqlite_database, "rival", clock) is None
    with sqlite_database.write() as tx:
        put_back(tx, job, owner="me", run_at=clock() + timedelta(seconds=20))
    clock.advance(19)
    assert _claim(sqlite_database, "rival", clock) is None
    clock.advance(1)
    assert _claim(sqlite_database, "rival", clock) is not None


def test_a_job_put_back_waits_again_and_can_be_brought_forward(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock())
    job = _claim(sqlite_database, "me", clock)
    assert job is not None
    with sqlite_database.write() as tx:
        put_back(tx, job, owner="me", run_at=clock() + timedelta(hours=1))
    _defer(sqlite_database, "note", "op-1", run_at=clock() + timedelta(seconds=2), sooner=True)
    clock.advance(2)
    again = _claim(sqlite_database, "other", clock)
    assert again is not None
    assert again.attempts == 2


def test_bringing_forward_lives_and_dies_with_the_state_it_serves(sqlite_database: Database, clock: Clock) -> None:
    _defer(sqlite_database, "note", "op-1", run_at=clock() + timedelta(hours=1))
    with sqlite_database.engine.connect() as tx:
        defer(tx, "note", "op-1", run_at=clock(), sooner=True)
        tx.rollback()
    assert _claim(sqlite_database, "me", clock) is None


def _defer(database: Database, name: str, ref: str, *, run_at: datetime, sooner: bool = False) -> None:
    with database.write() as tx:
        defer(tx, name, ref, run_at=run_at, sooner=sooner)


def _claim(database: Database, owner: str, clock: Clock) -> Job | None:
    with database.write() as tx:
        return claim(tx, owner=owner, now=clock(), lease=LEASE)


def _any_due(database: Database, clock: Clock) -> bool:
    with database.read() as tx:
        return any_due(tx, now=clock())


def _count(database: Database) -> int:
    with database.read() as tx:
        return tx.scalar(select(func.count()).select_from(jobs)) or 0
