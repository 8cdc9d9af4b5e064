"""Several web and worker processes on one PostgreSQL, as on several hosts: stopped, replaced and killed under load."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import requests
from sqlalchemy import func, make_url, select, text

from loyalty.rivo_wire import read_internal_note
from storage.database import Database
from storage.tables import awards, jobs, workers
from tests.cli.command import environment_of, start
from tests.databases import Postgres
from tests.house import House, running_house
from tests.notes.tickets import EMAIL, Ticket
from tests.placement.gorgias import RunningClock
from tests.processes.serving import ROOT, answers, free_port, gunicorn, wait_for
from widget.connections import Connection

ANA = "ana@example.com"
TICKETS = 60


@pytest.fixture
def house(postgres_database: Database) -> Iterator[House]:
    """Sandbox and database of all hosts, on the real clock; the process it runs in is not one of the hosts."""
    with running_house(postgres_database.url, clock=RunningClock(), max_points_per_agent_per_day=1_000_000) as running:
        yield running


class Host:
    """One process of ours; `log` is what it says."""

    def __init__(self, process: subprocess.Popen[bytes] | subprocess.Popen[str], log: Path, port: int = 0) -> None:
        self.process = process
        self.log = log
        self.port = port

    def stop(self) -> None:
        """SIGTERM, and wait for a clean end."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=40) == 0, self.log.read_text()

    def kill(self) -> None:
        """kill -9, its children too."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for child in children:
            child.kill()
        self.process.wait(timeout=10)


@contextmanager
def worker(house: House, log: Path) -> Iterator[Host]:
    """One `flask worker`, ready to take jobs."""
    with log.open("w") as sink, start("worker", env=_environment(house), log=sink) as process:
        host = Host(process, log)
        try:
            wait_for(lambda: '"outcome":"started"' in log.read_text(), "the worker never began", log=log)
            yield host
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=10)


@contextmanager
def web(house: House, folder: Path, name: str) -> Iterator[Host]:
    """One gunicorn with one worker process."""
    with free_port() as port:
        env = {
            **_environment(house),
            "PORT": str(port),
            "WEB_CONCURRENCY": "1",
            "TMPDIR": str(folder),
        }
        log = folder / f"{name}.log"
        process = gunicorn(env, log=log)
        host = Host(process, log, port)
        try:
            wait_for(lambda: answers(port), "gunicorn never answered", log=log)
            yield host
        finally:
            if process.poll() is None:
                host.kill()


class Load:
    """Agents who press the button beside sixty tickets, on whichever web host answers, until they are told."""

    def __init__(self, house: House, connection: Connection, ports: list[int]) -> None:
        self.ports = ports
        self.told: dict[int, str] = {}
        self._url = house.url
        self._key = house.services.connections.newest_keys(connection.id).award
        self._give_up_at = time.monotonic() + 60
        self._threads = [threading.Thread(target=self._press, args=(range(n, TICKETS, 4),)) for n in range(4)]

    def _press(self, tickets: range) -> None:
        for ticket in tickets:
            attempt = ticket
            while time.monotonic() < self._give_up_at:
                attempt += 1
                try:
                    answer = requests.post(
                        f"http://127.0.0.1:{self.ports[attempt % len(self.ports)]}/widget/earnings",
                        json={"email": ANA, "points": 10, "ticket_id": str(ticket), "agent_email": "lee@example.com"},
                        headers={"X-Api-Key": self._key},
                        timeout=20,
                    )
                except requests.RequestException:  # cut off before, or in the middle of, its answer
                    time.sleep(0.05)
                    continue
                assert answer.status_code in (200, 202), answer.text
                self.told[ticket] = answer.json()["operation_id"]
                break

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def reach(self, count: int) -> None:
        """Wait until so many tickets have their answer."""
        wait_for(lambda: len(self.told) >= count, f"only {len(self.told)} awards were answered")

    def finish(self) -> None:
        for thread in self._threads:
            thread.join()


def test_replacing_and_killing_hosts_under_load_loses_no_award_and_doubles_none(house: House, tmp_path: Path) -> None:
    """Two webs and two workers; each is replaced or killed while awards go to Rivo, which fails now and then."""
    house.connect()
    connection = house.open_rivo("acme")
    store = house.sandbox.rivo("northwind")
    store.add_customer(ANA, points=0)
    for after in (5, 25, 45):
        events = "/merchant_api/v1/points_events"
        house.sandbox.faults.add(events, method="POST", account="rivo", kind="status_after", skip=after)
    with ExitStack() as hosts:
        workers_ = [hosts.enter_context(worker(house, tmp_path / f"worker-{n}.log")) for n in range(2)]
        webs = [hosts.enter_context(web(house, tmp_path, f"web-{n}")) for n in range(2)]
        load = Load(house, connection, [host.port for host in webs])
        load.start()
        load.reach(10)
        webs[0].kill()
        workers_[0].kill()
        webs.append(hosts.enter_context(web(house, tmp_path, "web-2")))
        load.ports.append(webs[2].port)
        load.reach(25)
        webs[1].stop()
        workers_[1].stop()
        workers_.append(hosts.enter_context(worker(house, tmp_path / "worker-2.log")))
        load.finish()
        assert len(load.told) == TICKETS
        webs[2].stop()
        workers_[2].stop()
        _let_pass(house, minutes=3)
        workers_.append(hosts.enter_context(worker(house, tmp_path / "worker-3.log")))
        wait_for(lambda: _unsettled(house, load.told.values()) == 0, "awards never settled", log=workers_[3].log)
        for host in (*webs, *workers_):
            assert "Traceback" not in host.log.read_text(), host.log.read_text()
    told = Counter(load.told.values())
    assert max(told.values()) == 1, "each ticket has an award of its own"
    booked = Counter(
        note[0] for row in store.events(ANA) if (note := read_internal_note(row["internal_note"] or "")) is not None
    )
    assert {operation_id: booked[operation_id] for operation_id in told} == dict.fromkeys(told, 1)
    assert max(booked.values()) == 1, "not even an award whose answer was lost is booked twice"


def test_a_killed_workers_job_is_taken_up_by_another_host_and_the_note_is_posted_once(
    house: House, tmp_path: Path
) -> None:
    ticket = Ticket(house)
    slow = ticket.sandbox.faults.add(ticket.path, method="POST", kind="slow", seconds=0.5)
    with worker(house, tmp_path / "first.log") as first:
        operation_id = ticket.award()
        wait_for(lambda: slow.hits == 1, "no note was sent", log=first.log)
        first.kill()
    wait_for(lambda: len(ticket.notes()) == 1, "Gorgias took it, but nobody was there to hear so")
    assert ticket.state(operation_id) == ("due", None)
    with house.services.database.write() as tx:
        # As if the half minute had passed after which a silent worker counts as lost.
        tx.execute(text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute'"))
    with worker(house, tmp_path / "second.log") as second:
        wait_for(lambda: ticket.state(operation_id) == ("posted", None), "never taken up", log=second.log)
        second.stop()
    assert (len(ticket.notes()), ticket.posts()) == (1, 1)
    with house.services.database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(jobs)) == 0
        assert tx.scalar(select(func.count()).select_from(workers)) == 0, "who stops in good order says goodbye"


def test_a_job_whose_outcome_could_not_be_written_is_taken_up_again(
    house: House, postgres: Postgres, tmp_path: Path
) -> None:
    """The database goes away while the job waits for Gorgias, and comes back."""
    ticket = Ticket(house)
    name = make_url(house.services.database.url).database
    slow = ticket.sandbox.faults.add(ticket.path, method="POST", kind="slow", seconds=1.0)
    with worker(house, tmp_path / "worker.log") as host:
        operation_id = ticket.award()
        wait_for(lambda: slow.hits == 1, "no note was sent", log=host.log)
        postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        wait_for(lambda: '"outcome":"storage_trouble"' in host.log.read_text(), "no trouble", log=host.log)
        postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        house.services.database.close()
        wait_for(lambda: _workers(house) > 0, "the worker did not come back", log=host.log)
        with house.services.database.write() as tx:
            tx.execute(text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute'"))
        wait_for(lambda: ticket.state(operation_id) == ("posted", None), "never taken up", log=host.log)
        host.stop()
        assert "Traceback" not in host.log.read_text()
    assert (len(ticket.notes()), ticket.posts()) == (1, 1)


def test_a_note_follows_its_award_at_once_though_nobody_polls_for_it(house: House, tmp_path: Path) -> None:
    """The engine wakes its worker by LISTEN and NOTIFY."""
    ticket = Ticket(house)
    with worker(house, tmp_path / "worker.log") as host:
        operation_id = ticket.award()
        wait_for(lambda: ticket.state(operation_id) == ("posted", None), "no note", log=host.log)


def test_the_engines_own_tooling_works_on_our_jobs(house: House) -> None:
    """`procrastinate` with the app of the checkout, as docs/running.md shows it."""
    Ticket(house).award()
    done = subprocess.run(
        [sys.executable, "-m", "procrastinate", "--app=engine_worker.app", "shell", "list_jobs"],
        cwd=ROOT,
        env=environment_of(house),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "award_settled on tallydesk - [todo]" in done.stdout
    assert EMAIL not in done.stdout


def _environment(house: House) -> dict[str, str]:
    """What every process gets; an award that was cut off before it was sent is sent again as early as may be."""
    return {
        **environment_of(house),
        "RIVO_URL": house.services.settings.rivo_url,
        "UNKNOWN_AWARD_RESEND_AFTER_S": "15",
    }


def _workers(house: House) -> int:
    with house.services.database.read() as tx:
        return tx.scalar(select(func.count()).select_from(workers)) or 0


def _let_pass(house: House, *, minutes: int) -> None:
    """So much time, while no process runs: what the killed ones held has ended, and what waits is due."""
    microseconds = minutes * 60_000_000
    with house.services.database.write() as tx:
        for column in (awards.c.lease_until, awards.c.attempt_ended_at):
            tx.execute(text(f"UPDATE awards SET {column.name} = {column.name} - {microseconds}"))
        tx.execute(text(f"UPDATE procrastinate_jobs SET scheduled_at = scheduled_at - interval '{minutes} minutes'"))
        tx.execute(text(f"UPDATE procrastinate_workers SET last_heartbeat = now() - interval '{minutes} minutes'"))


def _unsettled(house: House, operation_ids: Iterable[str]) -> int:
    told = awards.c.operation_id.in_(list(operation_ids))
    with house.services.database.read() as tx:
        return tx.scalar(select(func.count()).select_from(awards).where(told, awards.c.state != "applied")) or 0
