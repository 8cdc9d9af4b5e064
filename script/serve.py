"""script/server: Tallydesk, its worker and a sandbox helpdesk on this machine, with two demo stores.

Everything is kept under var/: the database, the secrets, what the sandbox knows, and the logs. PORT (default
8000) is Tallydesk's; the sandbox has the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from script.bootstrap import ROOT, VAR, Trouble, last_lines, run, say, set_up

MEMBERS = "demo/members.csv"
LOGS = VAR / "log"
DEFAULT_PORT = 8000


@dataclass(frozen=True)
class Child:
    """A process of the demo: its name and its command.

    `answers` is the local port and path that it answers (with less than a 500) once it works.
    """

    name: str
    command: Sequence[str]
    answers: tuple[int, str] | None = None


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C or SIGTERM (returns 0) or until a process fails (returns 1).

    Raises Trouble for what goes wrong before.
    """
    if arguments:
        raise Trouble("script/server takes no arguments; another port is chosen with PORT=8100 script/server.")
    port = port_from(os.environ)
    with only_one_server(VAR / "server.lock"):
        for number in (port, port + 1):
            check_free(number)
        python = set_up(["requirements.txt"])
        environment = demo_environment(port, sandbox_client(VAR / "sandbox-client.json"))
        prepare(python, environment)
        (VAR / "demo-port").write_text(str(port))
        return supervise(
            children(python, port, environment),
            environment=environment,
            logs=LOGS,
            announce=lambda: announce(port),
        )


def port_from(environment: Mapping[str, str]) -> int:
    """PORT, or 8000. The sandbox takes the one above, so 65535 is too high. Raises Trouble."""
    given = environment.get("PORT", "").strip() or str(DEFAULT_PORT)
    if not (given.isascii() and given.isdigit() and len(given) <= 5 and 1 <= int(given) <= 65534):
        raise Trouble(f"PORT is {given!r}, but must be a number between 1 and 65534.")
    return int(given)


@contextlib.contextmanager
def only_one_server(path: Path) -> Iterator[None]:
    """Two servers in one folder would share its data: raises Trouble when there is one already."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble(
                "script/server already runs in this folder: use it, or stop it with Ctrl-C where it started."
            ) from None
        yield


def check_free(port: int) -> None:
    """Raises Trouble when someone listens on `port` at one of the addresses that localhost may mean."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                # As servers do: what is left of closed connections does not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except PermissionError:
            raise Trouble(f"Port {port} is for root only: run `PORT=8000 script/server`.") from None
        except OSError as error:
            if family == socket.AF_INET6 and error.errno != errno.EADDRINUSE:
                continue  # this machine has no IPv6
            raise Trouble(
                f"Port {port} is taken: stop the program that uses it, or choose two other ports with "
                f"`PORT={port + 100 if port < 65000 else 8000} script/server` (that port and the next)."
            ) from None


def sandbox_client(path: Path) -> tuple[str, str]:
    """Client id and secret of Tallydesk at the sandbox, made once; only this user can read them."""
    if not path.exists():
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with open(draft, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as handle:
            made = {"client_id": secrets.token_hex(12), "client_secret": secrets.token_urlsafe(32)}
            json.dump(made, handle)
        draft.replace(path)
    kept = json.loads(path.read_text())
    return kept["client_id"], kept["client_secret"]


def demo_environment(port: int, client: tuple[str, str]) -> dict[str, str]:
    """The environment of every process of the demo.

    It wins over an .env file, so that a demo never touches the database or the helpdesk that someone has set
    up there; an empty value means the default, which lies in var/.
    """
    return {
        **os.environ,
        "DATABASE_URL": "",
        "SECRET_KEY": "",
        "ENCRYPTION_KEYS": "",
        "PORT": str(port),
        "PUBLIC_URL": f"http://localhost:{port}",
        "GORGIAS_URL": f"http://localhost:{port + 1}/{{account}}",
        "GORGIAS_CLIENT_ID": client[0],
        "GORGIAS_CLIENT_SECRET": client[1],
        "RIVO_URL": f"http://localhost:{port + 1}/rivo/merchant_api/v1",
        "FLASK_APP": "app",
        "PYTHONUNBUFFERED": "1",
    }


def prepare(python: Path, environment: Mapping[str, str]) -> None:
    """The database and, the first time, its demo members. Raises Trouble with what the command said."""
    LOGS.mkdir(exist_ok=True)
    loaded = VAR / "demo-members-loaded"
    if not (VAR / "tallydesk.db").exists():
        loaded.unlink(missing_ok=True)
    steps = [("Bringing the database up to date", ["db-upgrade"])]
    if not loaded.exists():
        steps.append(("Loading the demo store's members", ["members", "import", MEMBERS]))
    log = LOGS / "prepare.log"
    log.write_bytes(b"")
    for what, command in steps:
        say(f"{what} …")
        if run([str(python), "-m", "flask", *command], log, environment=dict(environment)) != 0:
            said = " ".join(last_lines(log, 1)) or "it said nothing"
            raise Trouble(f"{what} failed: {said} (all of it is in {_shown(log)})")
    loaded.touch()


def children(python: Path, port: int, environment: Mapping[str, str]) -> list[Child]:
    """The three processes of the demo."""
    tallydesk = environment["PUBLIC_URL"]
    sandbox = {
        "--port": str(port + 1),
        "--data": "var/sandbox",
        "--accounts": "acme,globex",
        "--rivo-stores": "northwind",
        "--client-id": environment["GORGIAS_CLIENT_ID"],
        "--client-secret": environment["GORGIAS_CLIENT_SECRET"],
        "--app-url": f"{tallydesk}/oauth/install?account={{gorgias_account}}",
        "--redirect-url": f"{tallydesk}/oauth/callback",
        "--customers": MEMBERS,
    }
    options = [part for option in sandbox.items() for part in option]
    gunicorn = [str(python), "-m", "gunicorn", "-c", "gunicorn.conf.py", "app:create_app()"]
    return [
        Child("web", gunicorn, answers=(port, "/healthz")),
        Child("worker", [str(python), "-m", "flask", "worker"]),
        Child("sandbox", [str(python), "-m", "sandbox", *options], answers=(port + 1, "/")),
    ]


def announce(port: int) -> None:
    """The address to open and what to do there, and where the second store's key is."""
    say(
        "\nTallydesk runs, with a sandbox helpdesk beside it. Open\n\n"
        f"    http://localhost:{port}/?account=acme\n\n"
        "  1. Press Connect, sign in to the helpdesk as Ada, and allow the access.\n"
        "  2. Choose the built-in ledger: it has a demo store with some thirty members.\n"
        "  3. Open a ticket of the helpdesk: the loyalty card is beside it, with Add Earnings.\n\n"
        f"A second demo store lives in a sandbox Rivo; its API key is at http://localhost:{port + 1}/rivo/\n"
        f"Ctrl-C stops everything; what you did is kept. Logs: {_shown(LOGS)}/"
    )


def supervise(
    processes: Sequence[Child],
    *,
    environment: Mapping[str, str],
    logs: Path,
    announce: Callable[[], None],
    patience_s: float = 60,
    grace_s: float = 25,
) -> int:
    """Run `processes` until a signal (returns 0), or until one ends or does not answer in time (returns 1).

    `announce` is called once, when all that should answer do. At the end each is asked to stop and has
    `grace_s` seconds to finish, which is longer than gunicorn's own graceful_timeout.
    """
    asked_to_stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # SIGHUP: the terminal's window was closed. Under nohup it is ignored, and stays so.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda which, _frame: asked_to_stop.append(which))
    running: list[tuple[Child, subprocess.Popen[bytes]]] = []
    say(f"Starting {', '.join(child.name for child in processes)} …")
    try:
        for child in processes:
            running.append((child, _launch(child, environment, logs)))
        silent = [child for child in processes if child.answers]
        deadline = time.monotonic() + patience_s
        while not asked_to_stop:
            for child, process in running:
                if process.poll() is not None:
                    return _complain(child, f"ended by itself with exit code {process.returncode}", logs)
            if silent:
                silent = [child for child in silent if not _answers(child)]
                if not silent:
                    announce()
                elif time.monotonic() > deadline:
                    return _complain(silent[0], f"did not answer within {patience_s:g} seconds", logs)
            time.sleep(0.1)
        say("\nStopping …")
        return 0
    finally:
        _stop([process for _, process in running], grace_s)


def _launch(child: Child, environment: Mapping[str, str], logs: Path) -> subprocess.Popen[bytes]:
    with (logs / f"{child.name}.log").open("wb") as log:
        return subprocess.Popen(
            list(child.command),
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches every process of a terminal's group, and SIGINT makes gunicorn drop its requests:
            # in a session of its own a child gets only the SIGTERM sent below.
            start_new_session=True,
        )


def _answers(child: Child) -> bool:
    assert child.answers
    port, path = child.answers
    # Not urllib, which would ask a proxy when the environment names one.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _complain(child: Child, what: str, logs: Path) -> int:
    log = logs / f"{child.name}.log"
    said = "".join(f"\n  | {line}" for line in last_lines(log, 10))
    say(f"The {child.name} process {what}; stopping the others. The end of {_shown(log)}:{said or ' (empty)'}")
    return 1


def _stop(processes: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace_s
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        # Whatever is left of its group, children of the child among them.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
