"""The real server in real trouble: stopped, killed, overrun and started wrongly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import select, text

from loyalty.ledger import verify
from storage.database import Database
from storage.sealing import Sealer, load_root_key
from storage.tables import awards
from tests.processes.serving import (
    ROOT,
    Server,
    answers,
    environment,
    free_port,
    gunicorn,
    serving,
    wait_for,
)

JANE = "jane@example.com"


def test_two_workers_answer_count_together_and_keep_addresses_out_of_the_log(
    sqlite_database: Database, tmp_path: Path
) -> None:
    with serving(sqlite_database.url, folder=tmp_path) as server:
        assert len(server.workers()) == 2
        assert requests.get(f"{server.house.url}/healthz", timeout=20).text == "ok\n"
        assert requests.get(f"{server.house.url}/readyz", timeout=20).text == "ready\n"
        for _ in range(20):
            assert server.house.lookup(server.connection, JANE).json()["points_balance"] == 100
        server.house.lookup(server.connection, "stranger.secret@example.com")
        server.house.lookup(server.connection, params="email=" + "%25F0%259F%258E%2581" * 350)
        fields = {"email": JANE, "points": 5, "agent_email": "agent.secret@example.com", "ticket_id": 1}
        assert server.house.award(server.connection, fields).json()["status"] == "applied"
        assert server.house.award(server.connection, fields).json()["status"] == "already_applied"
        assert (
            server.house.award(server.connection, {"email": "stranger.secret@example.com", "points": 5}).status_code
            == 404
        )
        key = server.house.services.connections.newest_keys(server.connection.id).lookup
        for request in (
            "GET /widget/customer?email=jane secret@example.com HTTP/1.1\r\n\r\n",
            f"GET /widget/customer HTTP/1.1\r\nX-Api-Key : {key}\r\n\r\n",
            f"G{{T /widget/customer?email={JANE} HTTP/1.1\r\n\r\n",
            f"GET /widget/customer?email={JANE} HTTP/7.1\r\n\r\n",
        ):
            assert b" 400 " in _raw(server.port, request), request

        metrics = requests.get(f"{server.house.url}/metrics", timeout=20).text
        assert _metric(metrics, "tallydesk_requests_total", outcome="found", route="/widget/customer") == 20
        assert _metric(metrics, "tallydesk_request_seconds_count", route="/widget/customer") == 22
        assert _metric(metrics, "tallydesk_awards_total", outcome="applied") == 1
        assert _metric(metrics, "tallydesk_awards_total", outcome="already_applied") == 1
        assert _metric(metrics, "tallydesk_awards_total", outcome="member_not_found") == 1
        assert "@" not in metrics

        with server.house.services.database.write() as tx:
            tx.execute(text("UPDATE alembic_version SET version_num = 'ffff'"))
        not_ready = requests.get(f"{server.house.url}/readyz", timeout=20)
        assert (not_ready.status_code, "newer version" in not_ready.text) == (503, True)
    said = server.log.read_text()
    assert server.process.returncode == 0
    assert said.count('"event":"lookup"') == 22
    assert "Invalid request from ip=" in said
    assert "secret" not in said
    assert "@" not in said
    assert "%40" not in said
    assert key not in said
    for line in said.splitlines():
        if line.startswith("{"):
            json.loads(line)


def test_a_bug_quotes_no_address_in_the_log() -> None:
    """The text of an unforeseen error may hold one."""
    code = (
        "import structlog, telemetry\n"
        "telemetry.configure_logging()\n"
        "try:\n    {}['jane.secret@example.com']\n"
        "except KeyError:\n    structlog.get_logger().exception('lookup', what='a%40b.secret', outcome='crashed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "KeyError" in done.stderr
    assert "crashed" in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_a_stop_in_the_middle_of_an_award_lets_it_finish(sqlite_database: Database, tmp_path: Path) -> None:
    """SIGTERM while the award waits for the database: it is answered, and is in the ledger once."""
    with serving(sqlite_database.url, folder=tmp_path) as server:
        lock = sqlite3.connect(tmp_path / "tallydesk.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        client = server.send_award(email=JANE, points=50, ticket_id=1)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: len(server.workers()) == 1, "the idle worker never left")
        lock.execute("ROLLBACK")
        lock.close()
        answer = client.getresponse()
        told = json.loads(answer.read())
        client.close()
        assert (answer.status, told["status"], told["points_balance"]) == (200, "applied", 150)
        assert server.process.wait(timeout=30) == 0
        assert [row.operation_id for row in _journal(server)] == [told["operation_id"]]


def test_a_worker_killed_in_the_middle_of_an_award_leaves_nothing_and_a_retry_awards_once(
    sqlite_database: Database, tmp_path: Path
) -> None:
    with serving(sqlite_database.url, folder=tmp_path) as server:
        lock = sqlite3.connect(tmp_path / "tallydesk.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        client = server.send_award(email=JANE, points=50, ticket_id=1)
        _kill(server)
        lock.execute("ROLLBACK")
        lock.close()
        with pytest.raises(OSError):  # noqa: PT011 (reset or closed, as the kernel likes)
            client.getresponse()
        client.close()
        assert _journal(server) == []
        wait_for(lambda: answers(server.port), "no new worker", log=server.log)
        told = server.house.award(server.connection, {"email": JANE, "points": 50, "ticket_id": 1}).json()
        assert (told["status"], told["points_balance"]) == ("applied", 150)
        assert len(_journal(server)) == 1


def test_workers_killed_under_load_neither_lose_nor_double_an_award(database: Database, tmp_path: Path) -> None:
    """Whoever got no answer presses again, as agents do; in the end each of forty tickets has its one award."""
    with serving(database.url, folder=tmp_path) as server:
        done: list[str] = []
        deadline = time.monotonic() + 40

        def press(tickets: range) -> None:
            for ticket in tickets:
                while time.monotonic() < deadline:
                    try:
                        answer = server.house.award(
                            server.connection, {"email": JANE, "points": 10, "ticket_id": ticket}
                        )
                    except requests.RequestException:  # cut off before, or in the middle of, its answer
                        time.sleep(0.05)
                        continue
                    assert answer.status_code == 200, answer.text
                    done.append(answer.json()["status"])
                    break

        threads = [threading.Thread(target=press, args=(range(start, start + 10),)) for start in (0, 10, 20, 30)]
        for thread in threads:
            thread.start()
        for reached in (8, 24):
            wait_for(partial(_as_many, done, reached), "awards stopped")
            _kill(server)
        for thread in threads:
            thread.join()
        assert len(done) == 40
        journal = _journal(server)
        assert Counter(row.state for row in journal) == {"applied": 40}
        assert len({row.ticket_id for row in journal}) == 40
        assert server.house.balance(server.connection, JANE) == 100 + 400
        with server.house.services.database.read() as tx:
            assert list(verify(tx)) == []


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "The database is empty. Run: flask db-upgrade"),
        ("newer", "The database was made by a newer version of Tallydesk"),
    ],
)
def test_a_database_that_does_not_fit_stops_the_start_in_one_sentence(
    sqlite_database: Database, tmp_path: Path, version: str | None, sentence: str
) -> None:
    url = sqlite_database.url
    if version is None:
        url = f"sqlite:///{tmp_path / 'new.db'}"
    else:
        with sqlite_database.write() as tx:
            tx.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
    with free_port() as port:
        env = environment(url, port=port, folder=tmp_path)
        web = gunicorn(env, log=tmp_path / "web.log")
        worker = subprocess.run(
            [sys.executable, "-m", "flask", "worker"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
        )
        assert web.wait(timeout=60) == 1
    said = (tmp_path / "web.log").read_text()
    assert said.splitlines()[-1].startswith(sentence)
    assert worker.returncode == 1
    assert worker.stderr.startswith(f"Error: {sentence}")
    assert "Traceback" not in said + worker.stderr


def test_two_servers_starting_at_once_on_an_empty_folder_agree_on_the_secrets(
    sqlite_database: Database, tmp_path: Path
) -> None:
    """Else the second could not open what the first has sealed: the key behind all HMACs is made at the start, too."""
    root = tmp_path / "checkout"
    shutil.copytree(
        ROOT,
        root,
        ignore=lambda folder, names: [
            name for name in names if name.startswith(".") or name in ("var", "tests", "docs", "__pycache__")
        ],
    )
    with free_port() as first, free_port() as second:
        servers = []
        for port in (first, second):
            env = environment(sqlite_database.url, port=port, folder=tmp_path)
            del env["SECRET_KEY"], env["ENCRYPTION_KEYS"]
            servers.append(gunicorn(env, log=tmp_path / "web.log", root=root))
        try:
            for port in (first, second):
                wait_for(partial(answers, port, "/readyz"), "never ready", log=tmp_path / "web.log")
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait(timeout=30)
    assert [server.returncode for server in servers] == [0, 0]
    assert "Traceback" not in (tmp_path / "web.log").read_text()
    assert [file.name for file in (root / "var").iterdir()] == ["secrets.json"]
    kept = json.loads((root / "var" / "secrets.json").read_text())
    assert load_root_key(sqlite_database, sealer=Sealer((kept["ENCRYPTION_KEYS"],)), random_bytes=os.urandom)


def _as_many(things: list[str], count: int) -> bool:
    return len(things) >= count


def _kill(server: Server) -> None:
    """kill -9 for every worker there is."""
    for worker in server.workers():
        worker.kill()


def _journal(server: Server) -> list[Any]:
    with server.house.services.database.read() as tx:
        assert list(verify(tx)) == []
        return list(tx.execute(select(awards)))


def _raw(port: int, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(request.encode())
        return client.recv(4_096)


def _metric(text: str, name: str, **labels: str) -> float:
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    found = re.search(rf"^{re.escape(f'{name}{{{inside}}}')} (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0
