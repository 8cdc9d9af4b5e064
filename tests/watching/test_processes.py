"""Metrics of real processes: several of one server count together, two servers apart, a worker at a port of its own."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from storage.database import Database
from tests.cli.command import flask, start
from tests.processes.serving import environment, free_port, gunicorn, serving, wait_for

JANE = "jane@example.com"
TOKEN = "a token of the tests"


def samples(url: str, **how: str) -> dict[str, list[float]]:
    """Values by name and labels, in the order in which they are told."""
    answer = requests.get(f"{url}/metrics", timeout=20, headers=how)
    assert answer.status_code == 200, answer.text
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{label}={value}" for label, value in sorted(sample.labels.items()))
            found.setdefault(f"{sample.name}{{{labels}}}", []).append(sample.value)
    return found


CARDS = "tallydesk_requests_total{outcome=found,route=/widget/customer}"
TIMES = "tallydesk_request_seconds_count{route=/widget/customer}"


def test_processes_of_one_server_count_together_and_another_server_apart(
    sqlite_database: Database, tmp_path: Path
) -> None:
    with serving(sqlite_database.url, folder=tmp_path) as server, free_port() as port:
        other = gunicorn(environment(sqlite_database.url, port=port, folder=tmp_path), log=tmp_path / "other.log")
        try:
            url, other_url = server.house.url, f"http://127.0.0.1:{port}"
            # Connections of their own, so that both processes come to answer.
            for _ in range(40):
                assert server.house.lookup(server.connection, JANE).json()["points_balance"] == 100
            folders = [path for path in tmp_path.glob("tallydesk-metrics-*") if any(path.glob("*.db"))]
            counters = [path.name for folder in folders for path in folder.glob("counter_*.db")]
            assert len(counters) >= 2, "both processes answered"
            wait_for(lambda: _answers(other_url), "the other server never answered", log=tmp_path / "other.log")
            told = samples(url)
            assert (told[CARDS], told[TIMES]) == ([40], [40])
            assert told["tallydesk_database_up{}"] == [1], "gauges of the database are told once"
            assert told["tallydesk_accounts{state=connected}"] == [1]
            assert all(len(values) == 1 for values in told.values())
            assert CARDS not in samples(other_url)

            # A process that is killed takes nothing of what was counted along.
            for worker in server.workers():
                os.kill(worker.pid, signal.SIGKILL)
            wait_for(lambda: len(server.listening()) == 2, "no new processes", log=server.log)
            assert server.house.lookup(server.connection, JANE).ok
            assert samples(url)[CARDS] == [41]
        finally:
            other.terminate()
            other.wait(timeout=30)
    assert list(tmp_path.glob("tallydesk-metrics-*")) == []


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_a_worker_shows_what_it_counts_at_its_port(sqlite_database: Database, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with free_port() as public:
        env = environment(sqlite_database.url, port=public, folder=tmp_path)
        env |= {"WORKER_METRICS_PORT": str(port), "METRICS_TOKEN": TOKEN, "FLASK_APP": "app"}
        log = tmp_path / "worker.log"
        with log.open("w") as sink, start("worker", env=env, log=sink) as worker:
            try:
                wait_for(lambda: '"outcome":"started"' in log.read_text(), "the worker never began", log=log)
                url = f"http://127.0.0.1:{port}"
                assert requests.get(f"{url}/metrics", timeout=20).status_code == 401
                assert requests.get(f"{url}/connections/", timeout=20).status_code == 404
                assert requests.post(f"{url}/metrics", timeout=20).status_code == 404
                told = samples(url, Authorization=f"Bearer {TOKEN}")
                assert "process_start_time_seconds{}" in told
                assert "tallydesk_database_up{}" not in told, "that is told by web"
                again = flask("worker", env=env)
                assert again.returncode == 1
                assert f"Port {port} cannot be used" in again.stderr
            finally:
                worker.terminate()
                assert worker.wait(timeout=30) == 0, log.read_text()
