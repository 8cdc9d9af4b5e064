"""script/server: the ports, the environment of the demo, and its processes, with small stand-ins for them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from script import serve
from script.bootstrap import ROOT, Trouble

# Runs `supervise` on the stand-ins of a JSON file, as script/server does on the real processes.
DRIVER = """
import json, sys
from pathlib import Path
from script.serve import Child, supervise

given = json.loads(sys.argv[1])
children = [Child(name, command, answers and tuple(answers)) for name, command, answers in given["children"]]
sys.exit(
    supervise(
        children,
        environment={"HOME": "/"},
        logs=Path(given["logs"]),
        announce=lambda: print("open http://localhost", flush=True),
        patience_s=given["patience_s"],
        grace_s=given["grace_s"],
    )
)
"""

# Finishes what it does when it is asked to stop.
POLITE = """
import signal, sys
def finish(*_):
    print("finished", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
print("up", flush=True)
while True:
    signal.pause()
"""

# Does not listen, and has a process of its own.
STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("up", flush=True)
while True:
    signal.pause()
"""

FAILING = "import sys; sys.exit('The database is of another version: run flask db-upgrade.')"

Given = tuple[str, list[str], tuple[int, str] | None]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def supervise(tmp_path: Path, *children: Given, patience_s: float = 30, grace_s: float = 20) -> subprocess.Popen[str]:
    given = {"children": children, "logs": str(tmp_path), "patience_s": patience_s, "grace_s": grace_s}
    command = [*python(DRIVER), json.dumps(given)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until_log_says(log: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, f"{log} never said {text!r}"
        time.sleep(0.02)


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the output ended without {text!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_every_process_finish_and_counts_as_success(number: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    web = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    process = supervise(tmp_path, ("web", web, (port, "/")), ("worker", python(POLITE), None))
    read_until(process, "open http://localhost")
    until_log_says(tmp_path / "worker.log", "up")
    started = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(number)
    said, _ = process.communicate(timeout=30)

    assert process.returncode == 0, said
    assert "finished" in (tmp_path / "worker.log").read_text()
    assert not any(child.is_running() for child in started)


def test_when_one_process_fails_the_others_are_stopped_and_its_last_words_are_shown(tmp_path: Path) -> None:
    process = supervise(tmp_path, ("web", python(POLITE), None), ("worker", python(FAILING), None))
    said, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "The worker process ended by itself with exit code 1" in said
    assert "run flask db-upgrade" in said
    assert "Traceback" not in said


def test_a_process_that_never_answers_is_named_after_a_while(tmp_path: Path) -> None:
    process = supervise(tmp_path, ("sandbox", python(POLITE), (free_port(), "/")), patience_s=0.5)
    said, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "The sandbox process did not answer within 0.5 seconds" in said


def test_a_process_that_does_not_stop_in_time_is_killed_with_its_children(tmp_path: Path) -> None:
    process = supervise(tmp_path, ("web", python(STUBBORN), None), grace_s=0.5)
    until_log_says(tmp_path / "web.log", "up")
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) == 2

    process.terminate()
    process.communicate(timeout=30)

    assert process.returncode == 0
    # An orphan without an init process that reaps it stays as a zombie.
    _, alive = psutil.wait_procs(started, timeout=0.5)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


def test_a_taken_port_is_one_sentence_with_the_way_out() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(Trouble, match=f"Port {port} is taken: .*PORT="):
            serve.check_free(port)
    serve.check_free(port)


@pytest.mark.parametrize("given", ["abc", "0", "65535", "-1", "8000.0", "٨٠٠٠", "9" * 5000])
def test_a_port_that_is_none_is_refused_in_words(given: str) -> None:
    with pytest.raises(Trouble, match="must be a number between 1 and 65534"):
        serve.port_from({"PORT": given})


def test_the_port_is_8000_unless_the_environment_says_otherwise() -> None:
    assert serve.port_from({}) == 8000
    assert serve.port_from({"PORT": ""}) == 8000
    assert serve.port_from({"PORT": "9100"}) == 9100


def test_a_folder_has_one_server_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "var" / "server.lock"
    with serve.only_one_server(lock), pytest.raises(Trouble, match="already runs"):
        serve.only_one_server(lock).__enter__()
    with serve.only_one_server(lock):
        pass


def test_the_sandbox_client_is_made_once_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    client_id, client_secret = serve.sandbox_client(path)
    assert len(bytes.fromhex(client_id)) == 12
    assert len(client_secret) > 40
    assert path.stat().st_mode & 0o777 == 0o600
    assert serve.sandbox_client(path) == (client_id, client_secret)


def test_the_demo_never_uses_a_database_or_a_helpdesk_named_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty value keeps out what an .env file says, too."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://production.example.com/tallydesk")
    monkeypatch.setenv("GORGIAS_URL", "https://{account}.gorgias.com")
    monkeypatch.setenv("RIVO_URL", "https://developer-api.rivo.io/merchant_api/v1")
    environment = serve.demo_environment(8000, ("id", "secret"))
    assert environment["DATABASE_URL"] == ""
    assert environment["GORGIAS_URL"] == "http://localhost:8001/{account}"
    assert environment["RIVO_URL"] == "http://localhost:8001/rivo/merchant_api/v1"
    assert environment["PATH"] == os.environ["PATH"]


def test_the_sandbox_is_started_with_the_demo_customers_and_a_store_of_rivo() -> None:
    environment = serve.demo_environment(8000, ("id", "secret"))
    sandbox = next(child for child in serve.children(Path("python"), 8000, environment) if child.name == "sandbox")
    options = dict(itertools.pairwise(sandbox.command))
    assert options["--rivo-stores"] == "northwind"
    assert options["--customers"] == serve.MEMBERS
    assert options["--port"] == "8001"


def test_the_announcement_has_one_address_to_open_and_says_where_the_second_stores_key_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve.announce(9100)
    said = capsys.readouterr().out
    assert said.count("http") == 2
    assert "    http://localhost:9100/?account=acme\n" in said
    (line,) = [line for line in said.splitlines() if "http://localhost:9101/rivo/" in line]
    assert "key" in line
