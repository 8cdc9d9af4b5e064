"""What one card, one award and one job cost in processor time and in bytes, for the arithmetic of docs/scale.md.

Run it from the root of the checkout: `.venv/bin/python -m bench.costs`. Real processes on a real PostgreSQL: one
gunicorn with one worker process, one `flask worker`, the sandbox as Gorgias and Rivo. Processor time is read from the
kernel for each side, so that a busy machine changes little; what the sandbox itself uses is not counted.
"""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from sqlalchemy import text

from storage.database import Database
from tests.cli.command import environment_of, start
from tests.databases import migrate, postgres_server
from tests.house import House, running_house
from tests.placement.gorgias import RunningClock
from tests.processes.serving import answers, free_port, gunicorn, wait_for

LOOKUPS, AWARDS, RIVO_LOOKUPS, RIVO_AWARDS = 10_000, 1_500, 200, 300
CLIENTS = 8
MEMBERS = 2_000


class Meter:
    """Processor seconds used since it was made, by side."""

    def __init__(self, **sides: psutil.Process) -> None:
        self._sides = sides
        self._before = {name: _seconds(process) for name, process in sides.items()}

    def per(self, count: int) -> dict[str, float]:
        """Milliseconds for one of `count`, by side."""
        return {name: 1000 * (_seconds(process) - self._before[name]) / count for name, process in self._sides.items()}


def _seconds(process: psutil.Process) -> float:
    """User and system time of a process and all it started, ended ones included."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + (times.children_user + times.children_system if one == process else 0)
    return total


@contextmanager
def _hosts(house: House, folder: Path) -> Iterator[tuple[int, psutil.Process, psutil.Process]]:
    """The port of a web host, its process and that of a worker."""
    with ExitStack() as stack:
        port = stack.enter_context(free_port())
        env = {**environment_of(house), "RIVO_URL": house.services.settings.rivo_url, "TMPDIR": str(folder)}
        web = gunicorn({**env, "PORT": str(port), "WEB_CONCURRENCY": "1"}, log=folder / "web.log")
        stack.callback(web.wait, timeout=30)
        stack.callback(web.terminate)
        worker = start("worker", env=env, log=stack.enter_context((folder / "worker.log").open("w")))
        stack.callback(worker.communicate, timeout=60)
        stack.callback(worker.terminate)
        wait_for(lambda: answers(port), "gunicorn never answered", log=folder / "web.log")
        yield port, psutil.Process(web.pid), psutil.Process(worker.pid)


def _send(port: int, count: int, request: Callable[[http.client.HTTPConnection, int], None]) -> float:
    """Send `count` requests over a few keep-alive connections; how many a second."""

    def run(numbers: range) -> None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for number in numbers:
            request(client, number)
            answer = client.getresponse()
            body = answer.read()
            assert answer.status in (200, 202), (answer.status, body)
        client.close()

    threads = [threading.Thread(target=run, args=(range(n, count, CLIENTS),)) for n in range(CLIENTS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.monotonic() - began)


def _drained(database: Database) -> bool:
    with database.read() as tx:
        return bool(tx.scalar(text("SELECT count(*) FROM jobs")) == 0)


def main() -> None:
    """Measure, and print the lines of the table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallydesk-bench-")))
        postgres = stack.enter_context(postgres_server())
        url = postgres.url(postgres.create())
        database = Database(url)
        migrate(database)
        house = stack.enter_context(
            running_house(
                url,
                clock=RunningClock(),
                max_points_per_agent_per_day=2_000_000_000,
                max_points_per_connection_per_day=2_000_000_000,
            )
        )
        _browser, ledger = house.connect()
        rivo = house.open_rivo("acme", max_points_per_agent_per_day=2_000_000_000, max_points_per_day=2_000_000_000)
        for number in range(MEMBERS):
            house.add_member(ledger.store, f"member-{number}@example.com", points=100)
        shop = house.sandbox.rivo("northwind")
        for number in range(RIVO_LOOKUPS):
            shop.add_customer(f"member-{number}@example.com", points=100)
        server = psutil.Process(_postmaster(database))
        port, web, worker = stack.enter_context(_hosts(house, folder))
        lookup_key = house.services.connections.newest_keys(ledger.id).lookup
        award_keys = {c.id: house.services.connections.newest_keys(c.id).award for c in (ledger, rivo)}

        def look_up(client: http.client.HTTPConnection, number: int) -> None:
            email = f"member-{number * 7919 % MEMBERS}@example.com"
            client.request("GET", f"/widget/customer?email={email}", headers={"X-Api-Key": lookup_key})

        def ask_rivo(client: http.client.HTTPConnection, number: int) -> None:
            headers = {"X-Api-Key": house.services.connections.newest_keys(rivo.id).lookup}
            client.request("GET", f"/widget/customer?email=member-{number}@example.com", headers=headers)

        def award(connection_id: int, members: int) -> Callable[[http.client.HTTPConnection, int], None]:
            def send(client: http.client.HTTPConnection, number: int) -> None:
                body = {"email": f"member-{number % members}@example.com", "points": 1, "ticket_id": f"{number}"}
                headers = {"X-Api-Key": award_keys[connection_id], "Content-Type": "application/json"}
                client.request("POST", "/widget/earnings", body=json.dumps(body), headers=headers)

            return send

        _send(port, 500, look_up)
        print("| what | web, ms CPU | worker, ms CPU | PostgreSQL, ms CPU | a second, here |")
        print("|---|---|---|---|---|")
        for name, count, request in (
            ("card, built-in ledger", LOOKUPS, look_up),
            ("award, built-in ledger, with its note", AWARDS, award(ledger.id, MEMBERS)),
            ("card, Rivo, asked of the program", RIVO_LOOKUPS, ask_rivo),
            ("award, Rivo, with its note", RIVO_AWARDS, award(rivo.id, 50)),
        ):
            meter = Meter(web=web, worker=worker, postgres=server)
            rate = _send(port, count, request)
            deadline = time.monotonic() + 120
            while not _drained(database) and time.monotonic() < deadline:
                time.sleep(0.2)
            cost = meter.per(count)
            print(
                f"| {name} | {cost['web']:.2f} | {cost['worker']:.2f} | {cost['postgres']:.2f} | {rate:,.0f} |",
                flush=True,
            )
        print(_bytes(database))
        database.close()


def _postmaster(database: Database) -> int:
    with database.read() as tx:
        backend = tx.scalar(text("SELECT pg_backend_pid()"))
    parent: int = psutil.Process(backend).ppid()
    assert parent != os.getpid()
    return parent


def _bytes(database: Database) -> str:
    """Bytes of a row with its indexes, by table."""
    lines = []
    with database.read() as tx:
        for table in ("members", "ledger_transactions", "ledger_entries", "awards", "award_attempts", "snapshots"):
            size = tx.scalar(text(f"SELECT pg_total_relation_size('{table}')")) or 0
            rows = tx.scalar(text(f"SELECT count(*) FROM {table}")) or 0
            if rows:
                lines.append(f"{table}: {size / rows:,.0f} bytes a row ({rows:,} rows)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
