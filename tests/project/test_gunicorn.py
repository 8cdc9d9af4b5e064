"""gunicorn.conf.py on a real gunicorn, with a small application in the place of Tallydesk."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from script.bootstrap import ROOT

APP = """
import os
from prometheus_client import Counter
from prometheus_client.values import ValueClass
visits = Counter("visits", "Visits.")
def why_not_ready():
    return os.environ.get("WHY_NOT")
def create_app():
    def answer(environ, start_response):
        visits.inc()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{ValueClass.__name__} {os.environ['PROMETHEUS_MULTIPROC_DIR']}".encode()]
    return answer
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    for name in ("gunicorn.conf.py", "cores.py", "serving.py", "settings.py", "threads.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given meanwhile: it is bound, but without reuse_port nobody listens."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def gunicorn(folder: Path, **variables: str) -> subprocess.Popen[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "app:create_app()"],
        cwd=folder,
        env={**keep, "TMPDIR": str(folder), **variables},
        stderr=subprocess.PIPE,
        text=True,
    )


def get(port: int) -> str:
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except OSError:
            assert time.monotonic() < deadline, "gunicorn never answered"
            time.sleep(0.05)
        finally:
            connection.close()


def test_metrics_are_kept_in_a_folder_of_this_start_that_is_gone_after_the_stop(folder: Path, port: int) -> None:
    process = gunicorn(folder, PORT=str(port))
    try:
        kind, metrics = get(port).split()
        assert kind == "MmapedValue"
        assert list(Path(metrics).glob("counter_*.db"))
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert not Path(metrics).exists()


def test_an_application_that_is_not_ready_stops_the_start_with_its_sentence(folder: Path, port: int) -> None:
    sentence = "The database is older than this version: run flask db-upgrade."
    process = gunicorn(folder, PORT=str(port), WHY_NOT=sentence)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.splitlines()[-1] == sentence
    assert "Traceback" not in said
    assert not list(folder.glob("tallydesk-metrics-*"))


def test_faulty_settings_stop_the_start_with_every_fault_in_words(folder: Path) -> None:
    process = gunicorn(folder, PORT="many", DOUBLE_CLICK_WINDOW_S="0")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "PORT must be a number" in said
    assert "DOUBLE_CLICK_WINDOW_S must lie between 1 and 86,400" in said
    assert "Traceback" not in said


def test_a_taken_port_stops_the_start_instead_of_starting_workers_for_ever(folder: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        process = gunicorn(folder, PORT=str(port))
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"Port {port} cannot be used" in said
    assert "Traceback" not in said
