"""Tallydesk as it is deployed: a real gunicorn from the root of the checkout, with its own database and secrets."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import psutil

from loyalty.awards import Rules
from loyalty.ledger import identity_for, open_store
from oauth.wire import TokenSet
from services import Services, build_services
from settings import load
from tests.databases import FIRST_KEY, Clock
from tests.house import SECRET_KEY, House

ROOT = Path(__file__).parents[2]


def environment(database_url: str, *, port: int, folder: Path) -> dict[str, str]:
    """What a process of this database gets; nothing of the caller's own settings."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **keep,
        "TMPDIR": str(folder),
        "DATABASE_URL": database_url.replace("postgresql+psycopg://", "postgresql://"),
        "PUBLIC_URL": f"http://localhost:{port}",
        "PORT": str(port),
        "SECRET_KEY": SECRET_KEY,
        "ENCRYPTION_KEYS": FIRST_KEY,
        "GORGIAS_CLIENT_ID": "client",
        "GORGIAS_CLIENT_SECRET": "secret",
        "GORGIAS_URL": "http://127.0.0.1:9/{account}",
        "WEB_CONCURRENCY": "2",
    }


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile: it is bound, but without a listener connections are refused."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def gunicorn(
    env: dict[str, str], *, log: Path, root: Path = ROOT, app: str = "app:create_app()"
) -> subprocess.Popen[bytes]:
    """Start it; everything it says goes to `log`."""
    with log.open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", app],
            cwd=root,
            env=env,
            stdout=sink,
            stderr=sink,
        )


class Server:
    """A running gunicorn with one connected helpdesk; `house` reaches it as Gorgias does."""

    def __init__(self, process: subprocess.Popen[bytes], *, house: House, port: int, log: Path) -> None:
        self.process = process
        self.house = house
        self.port = port
        self.log = log
        self.connection = house.services.connections.all()[0]

    def workers(self) -> list[psutil.Process]:
        """The processes that answer."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return found

    def listening(self) -> list[psutil.Process]:
        """The workers that have opened the port: each has a listener of its own."""
        return [worker for worker in self.workers() if _listens(worker, self.port)]

    def send_award(self, **fields: Any) -> http.client.HTTPConnection:
        """Send an award and come back when a worker has read it; the answer is still to be read."""
        key = self.house.services.connections.newest_keys(self.connection.id).award
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        client.request(
            "POST",
            "/widget/earnings",
            body=json.dumps(fields),
            headers={"X-Api-Key": key, "Content-Type": "application/json"},
        )
        assert client.sock is not None
        mine = client.sock.getsockname()[1]
        wait_for(lambda: _has_been_read(self.port, mine), "the award was never read")
        return client


def _listens(worker: psutil.Process, port: int) -> bool:
    try:
        return any(c.status == "LISTEN" and c.laddr.port == port for c in worker.net_connections("tcp4"))
    except psutil.NoSuchProcess:
        return False


def _has_been_read(port: int, client_port: int) -> bool:
    """Whether the server's end of this connection holds no unread bytes, as the kernel tells."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        if (int(local.split(":")[1], 16), int(remote.split(":")[1], 16)) == (port, client_port):
            return state == "01" and int(queues.split(":")[1], 16) == 0
    return False


@contextmanager
def serving(database_url: str, *, folder: Path) -> Iterator[Server]:
    """A server on a migrated database, which gets one account, one connection and the member jane@example.com."""
    with free_port() as port:
        env = environment(database_url, port=port, folder=folder)
        services = build_services(load(env, var=folder / "var"))
        url = f"http://127.0.0.1:{port}"
        house = House(services=services, sandbox=cast(Any, None), clock=Clock(), url=url)
        _connect(services, house)
        log = folder / "gunicorn.log"
        process = gunicorn(env, log=log)
        try:
            server = Server(process, house=house, port=port, log=log)
            wait_for(lambda: len(server.listening()) == 2, "gunicorn never answered", log=log)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(timeout=30)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                services.database.close()


def _connect(services: Services, house: House) -> None:
    now = house.clock()
    tokens = TokenSet(access_token="a", refresh_token="r", expires_at=now + timedelta(days=1))
    account = services.accounts.connect("acme", tokens=tokens, user_email="admin@example.com")
    services.hasher.email("")
    with services.database.write() as tx:
        store = open_store(tx, identity=identity_for("acme"), now=now)
        rules = Rules(max_points_per_award=1_000, max_points_per_agent_per_day=10_000, max_points_per_day=50_000)
        services.connections.open(tx, account_id=account.id, store=store, rules=rules)
    house.add_member(store, "jane@example.com", points=100)


def answers(port: int, path: str = "/healthz") -> bool:
    """Whether the server is there and well."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        client.request("GET", path)
        return client.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()


def wait_for(condition: Callable[[], bool], otherwise: str, *, log: Path | None = None) -> None:
    """Look again and again until `condition` holds, for at most 30 seconds."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{otherwise}\n{log.read_text() if log else ''}")
        time.sleep(0.02)
