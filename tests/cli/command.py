"""`flask` as an operator runs it: a process of its own, from the checkout's root, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from app import create_app
from services import build_services
from settings import load
from tests.databases import FIRST_KEY
from tests.house import SECRET_KEY, House

ROOT = Path(__file__).resolve().parents[2]


def environment(database_url: str, **others: str) -> dict[str, str]:
    """A whole environment for one process; `others` add to it or replace."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DATABASE_URL": database_url,
        "PUBLIC_URL": "http://localhost:8000",
        "SECRET_KEY": SECRET_KEY,
        "ENCRYPTION_KEYS": FIRST_KEY,
        "GORGIAS_CLIENT_ID": "client",
        "GORGIAS_CLIENT_SECRET": "secret",
        "GORGIAS_URL": "http://localhost:9/{account}",
        **others,
    }


def environment_of(house: House) -> dict[str, str]:
    """The environment of a process that works beside `house`: same database, same helpdesk."""
    settings = house.services.settings
    return environment(
        settings.database_url,
        PUBLIC_URL=settings.public_url,
        PORT=str(settings.port),
        GORGIAS_CLIENT_ID=settings.gorgias_client_id,
        GORGIAS_CLIENT_SECRET=settings.gorgias_client_secret,
        GORGIAS_URL=settings.gorgias_url,
    )


def start(*arguments: str, env: dict[str, str], log: IO[str] | None = None) -> subprocess.Popen[str]:
    """Begin `flask …`; the caller waits for it. What it logs can be read from `log` meanwhile, if given."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("flask")), *arguments],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=log or subprocess.PIPE,
    )


def flask(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `flask …` to its end. However it ends, nobody is shown a traceback."""
    with start(*arguments, env=env) as process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Traceback" not in out + err, out + err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def flask_here(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what the start of a process does not matter to: it takes a second of its own."""
    services = build_services(load(env, var=ROOT / "var"))
    try:
        done = create_app(services).test_cli_runner().invoke(args=arguments)
    finally:
        services.database.close()
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)
