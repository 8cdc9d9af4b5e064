"""`flask worker` as a process: it stops cleanly, loses nothing when it is killed, outlives its database's absence."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, make_url, select

from storage.database import Database
from storage.tables import jobs
from tests.cli.command import environment_of, start
from tests.databases import Postgres
from tests.house import running_house
from tests.notes.tickets import Ticket
from tests.placement.gorgias import RunningClock
from worker import LEASE


@pytest.fixture
def live_ticket(database: Database) -> Iterator[Ticket]:
    """On the real clock, which the worker's process shares."""
    with running_house(database.url, clock=RunningClock()) as house:
        yield Ticket(house)


def test_a_worker_told_to_stop_finishes_its_job_and_leaves_cleanly(live_ticket: Ticket) -> None:
    ticket = live_ticket
    slow = ticket.sandbox.faults.add(ticket.path, method="POST", kind="slow", seconds=0.5)
    with start("worker", env=environment_of(ticket.house)) as process:
        operation_id = ticket.award()
        _wait_until(lambda: slow.hits == 1)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log
    assert '"outcome":"stopped"' in log
    assert "Traceback" not in log
    assert ticket.state(operation_id) == ("posted", None)
    assert (len(ticket.notes()), _jobs(ticket)) == (1, 0)


def test_a_killed_workers_job_is_taken_up_when_its_lease_ends_and_the_note_is_posted_once(
    sqlite_database: Database,
) -> None:
    """On PostgreSQL its job engine finds lost workers: tests/processes/test_many_hosts.py."""
    with running_house(sqlite_database.url, clock=RunningClock()) as house:
        _kill_in_the_middle(Ticket(house))


def _kill_in_the_middle(ticket: Ticket) -> None:
    clock = ticket.house.clock
    assert isinstance(clock, RunningClock)
    slow = ticket.sandbox.faults.add(ticket.path, method="POST", kind="slow", seconds=0.5)
    with start("worker", env=environment_of(ticket.house)) as process:
        operation_id = ticket.award()
        _wait_until(lambda: slow.hits == 1)
        process.kill()
        process.communicate(timeout=20)
    _wait_until(lambda: len(ticket.notes()) == 1)  # Gorgias took it, but nobody was there to hear so
    assert ticket.state(operation_id) == ("due", None)
    assert ticket.house.work() == 0, "it may still be running somewhere"
    clock.jump(LEASE.total_seconds())
    assert ticket.house.work() == 1
    assert ticket.state(operation_id) == ("posted", None)
    assert (len(ticket.notes()), ticket.posts()) == (1, 1)


def test_a_worker_outlives_the_absence_of_its_database(
    postgres: Postgres, postgres_database: Database, tmp_path: Path
) -> None:
    name = make_url(postgres_database.url).database
    with running_house(postgres_database.url, clock=RunningClock()) as house:
        ticket = Ticket(house)
        path = tmp_path / "log"
        with path.open("w") as log, start("worker", env=environment_of(house), log=log) as process:
            first = ticket.award(5)
            _wait_until(lambda: ticket.state(first)[0] == "posted")
            postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            _wait_until(lambda: '"outcome":"database_trouble"' in path.read_text())
            postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            house.services.database.close()
            second = ticket.award(6)
            _wait_until(lambda: ticket.state(second)[0] == "posted")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in path.read_text()


def _jobs(ticket: Ticket) -> int:
    with ticket.house.services.database.read() as tx:
        return tx.scalar(select(func.count()).select_from(jobs)) or 0


def _wait_until(true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
