"""Servers to be measured: each started on a port of its own, waited for, and stopped by its own process id.

All say what they have to say into a file, as they do in production.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import psutil

from bench.load import ROOT
from bench.store import Filled
from tests.databases import Postgres, postgres_server
from tests.processes.serving import answers, environment, free_port, wait_for

TALLYDESK = "app:create_app()"
# gunicorn's own threads, all of which run: for what knows nothing of stepping aside (threads.py).
PLAIN_THREADS = ("--worker-class", "gthread", "--threads", "64")
# Of granian's threads all run, too, and a request that waits for a program keeps one.
GRANIAN_THREADS = 64
# For `shipped_but`: workers that do not keep to a core.
ANY_CORE = "def post_fork(server, worker): pass"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server: its port, its first process, and the seconds from its start to the first 200 of /healthz."""

    port: int
    process: psutil.Process
    answered_s: float

    def workers(self) -> list[psutil.Process]:
        """The processes that answer."""
        found: list[psutil.Process] = self.process.children()
        return found


@contextmanager
def gunicorn(
    app: str, filled: Filled, *, workers: int = 2, config: Path | None = None, flags: Sequence[str] = (), **env: str
) -> Iterator[Server]:
    """`app` under the shipped gunicorn.conf.py; `env` adds to the environment, `flags` and `config` override."""
    port = _free()
    given = {**environment(filled.url, port=port, folder=filled.folder), "WEB_CONCURRENCY": str(workers), **env}
    command = [sys.executable, "-m", "gunicorn", "-c", str(config or "gunicorn.conf.py"), *flags, app]
    with _running(command, given, port=port, folder=filled.folder) as server:
        wait_for(lambda: len(server.workers()) == workers, "not all workers of gunicorn came up")
        wait_for(lambda: all(_listens(worker, port) for worker in server.workers()), "a worker never listened")
        yield server


def shipped_but(folder: Path, name: str, line: str) -> Path:
    """The shipped settings with one more line of Python."""
    config = folder / f"{name}.conf.py"
    config.write_text(f"{(ROOT / 'gunicorn.conf.py').read_text()}\n{line}\n")
    return config


@contextmanager
def tallydesk_gunicorn(
    filled: Filled, *, workers: int = 2, config: Path | None = None, flags: Sequence[str] = (), **env: str
) -> Iterator[Server]:
    """Tallydesk as it is shipped."""
    with gunicorn(TALLYDESK, filled, workers=workers, config=config, flags=flags, **env) as server:
        yield server


@contextmanager
def granian(
    app: str,
    filled: Filled,
    *,
    workers: int = 2,
    blocking_threads: int = GRANIAN_THREADS,
    factory: bool = False,
    **env: str,
) -> Iterator[Server]:
    """A WSGI application `module:name` on granian; `factory` says that the name is to be called for it.

    Each worker keeps to a core, as under gunicorn, where the application asks for that.
    """
    metrics = mkdtemp(prefix="tallydesk-metrics-", dir=filled.folder)
    port = _free()
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--http", "1", "--no-ws"]
    command += ["--blocking-threads", str(blocking_threads)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    # A worker that is told to stop while it still starts never does.
    command += ["--workers-kill-timeout", "2"]
    command += ["--factory", app] if factory else [app]
    given = {
        **environment(filled.url, port=port, folder=filled.folder),
        # As gunicorn.conf.py does for its own: counters of all workers are added up.
        "PROMETHEUS_MULTIPROC_DIR": metrics,
        "GRANIAN_WORKERS": str(workers),
        **env,
    }
    with _running(command, given, port=port, folder=filled.folder) as server:
        wait_for(lambda: len(server.workers()) >= workers, "not all workers of granian came up")
        yield server


@contextmanager
def tallydesk_granian(
    filled: Filled, *, workers: int = 2, blocking_threads: int = GRANIAN_THREADS, **env: str
) -> Iterator[Server]:
    """Tallydesk on granian."""
    with granian(
        "on_granian:create_app", filled, workers=workers, blocking_threads=blocking_threads, factory=True, **env
    ) as server:
        yield server


@contextmanager
def uvicorn(app: str, filled: Filled, *, workers: int = 2, **env: str) -> Iterator[Server]:
    """An ASGI application `module:name` on uvicorn as it comes, with its access log."""
    port = _free()
    command = [sys.executable, "-m", "uvicorn", "--workers", str(workers), "--port", str(port), app]
    given = {**environment(filled.url, port=port, folder=filled.folder), **env}
    with _running(command, given, port=port, folder=filled.folder) as server:
        yield server


def has_nginx() -> bool:
    """Whether nginx can be the ceiling."""
    return shutil.which("nginx", path=_SBIN) is not None


@contextmanager
def nginx(folder: Path, *, body: bytes, workers: int = 2) -> Iterator[Server]:
    """nginx as whoever runs this, with an access log, serving a file of these bytes at `/healthz` and at `/`."""
    root = Path(mkdtemp(prefix="nginx-", dir=folder))
    (root / "card.json").write_bytes(body)
    port = _free()
    config = root / "nginx.conf"
    # Started by root, its workers would be another user, who may not read the file.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    config.write_text(_NGINX.format(user=user, root=root, port=port, workers=workers))
    command = [shutil.which("nginx", path=_SBIN) or "nginx", "-p", str(root), "-c", str(config)]
    with _running(command, {}, port=port, folder=folder) as server:
        yield server


_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_NGINX = """
daemon off;
{user}
worker_processes {workers};
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log {root}/access.log;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    keepalive_requests 1000000000;
    default_type application/json;
    server {{
        listen 127.0.0.1:{port} reuseport;
        etag off;
        location / {{ root {root}; try_files /card.json =404; }}
    }}
}}
"""


@contextmanager
def together(started: Mapping[str, AbstractContextManager[Server]]) -> Iterator[dict[str, Server]]:
    """All of these at once, by name: they come up and go down beside each other."""
    stacks = {name: ExitStack() for name in started}
    with ThreadPoolExecutor(len(started)) as pool:
        try:
            entered = {name: pool.submit(stacks[name].enter_context, server) for name, server in started.items()}
            wait(entered.values())  # also those beside one that failed: only then can they be stopped
            yield {name: server.result() for name, server in entered.items()}
        finally:
            list(pool.map(ExitStack.close, stacks.values()))


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of our own with the durability that it is shipped with."""
    with postgres_server() as server:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            server.run(f"ALTER SYSTEM RESET {setting}")
        server.run("SELECT pg_reload_conf()")
        yield server


@contextmanager
def _running(command: Sequence[str], env: Mapping[str, str], *, port: int, folder: Path) -> Iterator[Server]:
    """Start it, wait until it answers, and stop it at the end, with all that it started."""
    log = folder / f"server-{port}.log"
    with log.open("ab") as sink:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=dict(env), stdout=sink, stderr=sink)
    try:
        wait_for(lambda: process.poll() is not None or answers(port), f"{command[2]} never answered", log=log)
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended at once:\n{log.read_text()}")
        answered_s = time.monotonic() - began
        yield Server(port=port, process=psutil.Process(process.pid), answered_s=answered_s)
    finally:
        _stop(process)


_given: set[int] = set()


def _free() -> int:
    """A port that nobody has. It is let go before its server takes it, since not every server shares one."""
    while True:
        with free_port() as port:
            if port not in _given:
                _given.add(port)
                return port


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in psutil.wait_procs(started, timeout=5)[1]:
        left.kill()


def _listens(worker: psutil.Process, port: int) -> bool:
    try:
        return any(c.status == "LISTEN" and c.laddr.port == port for c in worker.net_connections("tcp4"))
    except psutil.NoSuchProcess:
        return False
