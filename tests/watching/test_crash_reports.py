"""Reports of crashes, as a Sentry on a real socket receives them: the error and its place, nothing about anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from script.bootstrap import ROOT
from tests.watching.marks import AGENT, SHOPPER, leaks
from tests.watching.receiver import Receiver, receiving

KEY = "canary-key-77e0d1c2b3a4958677aa"
SECRET_KEY = "canary secret key of this process: 0123456789"


@pytest.fixture
def sentry() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def events(sentry: Receiver) -> list[dict[str, Any]]:
    """What was reported: the items of the envelopes that are events.

    Their format: https://develop.sentry.dev/sdk/data-model/envelopes/
    """
    found = []
    for body in sentry.bodies:
        lines = body.split(b"\n")
        for head, item in zip(lines[1::2], lines[2::2], strict=False):
            if json.loads(head).get("type") == "event":
                found.append(json.loads(item))
    return found


# A process as create_app makes it, without web and database; two ways to crash.
PROCESS = """
import os, threading
import structlog
from redaction import hide
from telemetry import configure_logging, tell_with_every_line
from watching.crash_reports import CrashReports

email, key, secret_key = os.environ["EMAIL"], os.environ["KEY"], os.environ["SECRET"]
hide(secret_key)
configure_logging(on_crash=CrashReports(os.environ["DSN"], environment="production"))
log = structlog.get_logger()

def ask(email, headers):
    local = {"email": email, **headers}
    raise RuntimeError(f"no answer for {email}: {headers} under {secret_key}")

tell_with_every_line(request_id="0123456789abcdef01234567")
log.info("request", outcome="shown", route="/")
log.error("request", outcome="database_trouble", route="/", trouble="No database connection was free.")
try:
    try:
        ask(email, {"Authorization": key})
    except RuntimeError as first:
        raise ValueError(os.environ["AGENT"]) from first
except ValueError as error:
    log.error("request", outcome="crashed", route="/connections/<int:connection_id>", exc_info=error)
thread = threading.Thread(target=ask, args=(email, {"Authorization": key}))
thread.start()
thread.join()
ask(email, {"X-Api-Key": key})
"""


def test_a_crash_is_reported_without_anything_about_anybody(sentry: Receiver) -> None:
    marks = {"shopper": SHOPPER, "agent": AGENT, "key": KEY, "secret key": SECRET_KEY}
    env = {
        "EMAIL": SHOPPER,
        "AGENT": AGENT,
        "KEY": KEY,
        "SECRET": SECRET_KEY,
        "DSN": f"http://public@{sentry.address}/7",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROCESS],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["outcome"]) for line in lines] == [
        ("request", "shown"),
        ("request", "database_trouble"),
        ("request", "crashed"),
        ("process", "crashed"),
        ("process", "crashed"),
    ]
    reports = events(sentry)
    assert len(reports) == 3, "what is expected, and lines without an error, are not reported"
    kinds = {tuple(one["type"] for one in event["exception"]["values"]) for event in reports}
    assert kinds == {("RuntimeError", "ValueError"), ("RuntimeError",)}
    request = reports[0]
    assert request["tags"] == {
        "outcome": "crashed",
        "request_id": "0123456789abcdef01234567",
        "route": "/connections/<int:connection_id>",
    }
    frames = request["exception"]["values"][0]["stacktrace"]["frames"]
    assert frames[-1]["function"] == "ask"
    assert all("vars" not in frame for frame in frames)
    for event in reports:
        assert not {"request", "user", "breadcrumbs", "extra", "modules"} & {name for name in event if event[name]}
        assert "sys.argv" not in str(event)
    assert leaks({"reports": b"\n".join(sentry.bodies), "log": done.stderr}, marks) == []


def test_without_a_dsn_nothing_of_it_is_even_loaded() -> None:
    code = "import sys, app; print('sentry_sdk' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"
