"""How a line of the log leaves the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from threading import Thread

import pytest

from script.bootstrap import ROOT
from telemetry import tell_with_every_line, telling_with_every_line, with_circumstances

# A process that logs to a standard error that takes nothing, and goes on.
PROCESS = """
import os
import structlog
from telemetry import configure_logging

configure_logging()
log = structlog.get_logger()
log.info("lookup", outcome="found")
os.close(2)
log.info("lookup", outcome="lost")
print("went on")
"""


def test_a_line_that_cannot_be_written_costs_nobody_an_answer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    assert done.stdout == b"went on\n"
    [line] = map(json.loads, done.stderr.splitlines())
    assert (line["event"], line["outcome"], line["level"]) == ("lookup", "found", "info")
    assert line["timestamp"].endswith("Z")


def test_what_is_told_with_every_line_is_of_one_thread_and_the_next_request_s_takes_its_place() -> None:
    def told(**event: str) -> dict[str, str]:
        return dict(with_circumstances(None, "info", event))

    elsewhere: list[dict[str, str]] = []
    tell_with_every_line(request_id="first")
    with telling_with_every_line(job="award_settled"):
        assert told(event="job") == {"job": "award_settled", "event": "job"}
        thread = Thread(target=lambda: elsewhere.append(told(event="ask")))
        thread.start()
        thread.join()
    assert told(event="lookup") == {"request_id": "first", "event": "lookup"}
    tell_with_every_line(request_id="second")
    assert told(event="lookup", request_id="own") == {"request_id": "own", "event": "lookup"}
    assert told(event="lookup") == {"request_id": "second", "event": "lookup"}
    assert elsewhere == [{"event": "ask"}]
    tell_with_every_line()


def test_a_line_of_plain_words_is_the_one_that_the_logger_would_write() -> None:
    script = (
        "import structlog, telemetry\n"
        "telemetry.configure_logging()\n"
        "telemetry.tell_with_every_line(request_id='a1b2c3d4')\n"
        "structlog.get_logger().info('lookup', outcome='found', status=200, ms=0.25)\n"
        "telemetry.tell_plainly('lookup', outcome='found', status=200, ms=0.25)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    logged, plain = map(json.loads, done.stderr.splitlines())
    assert logged.pop("timestamp") <= plain.pop("timestamp")
    assert plain == logged
    assert plain["request_id"] == "a1b2c3d4"


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "exception", "critical"])
def test_every_level_has_its_way_out(level: str) -> None:
    """The writer stands in the place of structlog's own."""
    script = f"import structlog, telemetry; telemetry.configure_logging(); structlog.get_logger().{level}('said')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["said"] * (level != "debug")
