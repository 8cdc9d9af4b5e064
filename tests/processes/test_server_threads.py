"""The shipped gunicorn.conf.py with a small application: clients that wait hold nobody up, and nothing is lost."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from subprocess import Popen

import pytest

from serving import RUNNING
from tests.processes.serving import ROOT, answers, free_port, gunicorn, wait_for

APP = """
import socket
def why_not_ready():
    return None
def create_app():
    def answer(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/crash":
            raise ValueError("a bug")
        if path == "/hold":
            # Under way until the test hangs up.
            with socket.create_connection(("127.0.0.1", int(environ["QUERY_STRING"]))) as test:
                test.recv(1)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"well\\n"]
    return answer
"""

# More than run at once, and fewer than there are threads.
MANY = 3 * RUNNING
THREADS = 64
# gunicorn itself leaves a client that has sent nothing to itself after 5 s.
QUICK_S = 4.5


@contextmanager
def small_server(folder: Path) -> Iterator[tuple[Popen[bytes], int]]:
    """One worker of the small application; the process and its port."""
    (folder / "app.py").write_text(APP)
    for name in ("gunicorn.conf.py", "cores.py", "serving.py", "settings.py", "threads.py"):
        shutil.copy(ROOT / name, folder)
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with free_port() as port:
        env = {**keep, "TMPDIR": str(folder), "PORT": str(port), "WEB_CONCURRENCY": "1"}
        process = gunicorn(env, log=folder / "log", root=folder)
        try:
            wait_for(partial(answers, port), "gunicorn never answered", log=folder / "log")
            yield process, port
        finally:
            # Nothing that a test leaves open is waited for.
            process.send_signal(signal.SIGQUIT)
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with small_server(tmp_path_factory.mktemp("served")) as (_, port):
        yield port


def get(port: int, path: str = "/", *, within_s: float = 30) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=within_s)
    try:
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


def hold(port: int, listener: socket.socket, stack: ExitStack) -> tuple[http.client.HTTPConnection, socket.socket]:
    """A request that is under way: its client, and what is to be closed so that it goes on."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    stack.callback(client.close)
    client.request("GET", f"/hold?{listener.getsockname()[1]}")
    handler, _ = listener.accept()
    stack.callback(handler.close)
    return client, handler


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where requests that are held say so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        yield listener


def test_clients_that_connect_and_send_nothing_hold_nobody_up(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert get(port, within_s=QUICK_S) == (200, b"well\n")


def test_clients_that_send_half_a_request_hold_nobody_up_and_are_answered_when_they_go_on(port: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(MANY)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert get(port, within_s=QUICK_S) == (200, b"well\n")
        for client in clients:
            client.sendall(b"host\r\n\r\n")
        for client in clients:
            assert client.recv(4_096).startswith(b"HTTP/1.1 200 OK")


def test_requests_that_wait_without_a_word_hold_nobody_up(port: int, listener: socket.socket) -> None:
    with ExitStack() as stack:
        held = [hold(port, listener, stack) for _ in range(MANY)]
        assert get(port) == (200, b"well\n")
        for client, handler in held:
            handler.close()
            assert client.getresponse().read() == b"well\n"


def test_a_connection_is_kept_from_one_request_to_the_next(port: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    own = set()
    for _ in range(10):
        client.request("GET", "/")
        assert client.getresponse().read() == b"well\n"
        assert client.sock is not None
        own.add(client.sock.getsockname())
    client.close()
    assert len(own) == 1


def test_requests_that_crash_lose_no_thread(port: int) -> None:
    for _ in range(THREADS + 1):
        status, _ = get(port, "/crash")
        assert status == 500
    assert get(port) == (200, b"well\n")


def test_a_stop_answers_what_is_under_way(tmp_path: Path, listener: socket.socket) -> None:
    with small_server(tmp_path) as (process, port), ExitStack() as stack:
        held = [hold(port, listener, stack) for _ in range(MANY)]
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: _takes_up_nothing(port), "it never began to stop", log=tmp_path / "log")
        for client, handler in held:
            handler.close()
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b"well\n")
            client.close()
        assert process.wait(timeout=30) == 0


def _takes_up_nothing(port: int) -> bool:
    """A stopping worker leaves its port open and answers nobody new."""
    try:
        get(port, within_s=0.5)
    except OSError:
        return True
    return False
