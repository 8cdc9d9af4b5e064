"""What Tallydesk tells its operator: JSON log lines and the counters of Prometheus.

Every exit of a view or a job counts here with its reason; the same word is the log field and the metric label.
No label and no field ever holds an e-mail, a key, a token or a path; no label an account or a connection.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson
import structlog
from prometheus_client import Counter, Histogram
from structlog.processors import format_exc_info
from structlog.typing import Processor

from redaction import cleaned_field, cleaned_trace

REQUESTS = Counter(
    "tallydesk_requests",
    "Requests answered, by route and outcome.",
    ["route", "outcome"],
)
REQUEST_SECONDS = Histogram(
    "tallydesk_request_seconds",
    "Time to answer, by route.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
# Not `job`: Prometheus has a label of that name for itself.
JOBS = Counter("tallydesk_jobs", "Jobs run, by name and outcome.", ["name", "outcome"])
GORGIAS_CALLS = Counter("tallydesk_gorgias_calls", "Calls to Gorgias, by outcome.", ["outcome"])
MEMBER_READS = Counter(
    "tallydesk_member_reads", "Members read for programs elsewhere, by program and outcome.", ["program", "outcome"]
)
SNAPSHOT_AGE_SECONDS = Histogram(
    "tallydesk_snapshot_age_seconds",
    "Age of the snapshots that cards were answered from, by program.",
    ["program"],
    buckets=(1, 5, 15, 30, 60, 120, 300, 900, 3_600, 21_600, 86_400, 604_800),
)
PROGRAM_CALLS = Counter(
    "tallydesk_program_calls",
    "Calls to loyalty programs elsewhere, by program, call and outcome.",
    ["program", "call", "outcome"],
)
WEBHOOKS = Counter(
    "tallydesk_webhooks", "Webhooks of loyalty programs, by program and outcome.", ["program", "outcome"]
)
TOKEN_REFRESHES = Counter("tallydesk_token_refreshes", "Token refreshes, by outcome.", ["outcome"])
AWARDS = Counter("tallydesk_awards", "Awards asked for, by outcome.", ["outcome"])


_NUMBERS = (int, float)
_NOTHING: Mapping[str, Any] = {}
# Our own and not structlog's, which looks through every context variable there is for each line.
_circumstances: ContextVar[Mapping[str, Any]] = ContextVar("circumstances", default=_NOTHING)


def tell_with_every_line(**circumstances: Any) -> None:
    """From now on every line of this thread has these fields and no others that were given so before."""
    _circumstances.set(circumstances)


@contextmanager
def telling_with_every_line(**circumstances: Any) -> Iterator[None]:
    """Every line of this thread has these fields while the block runs."""
    before = _circumstances.set(circumstances)
    try:
        yield
    finally:
        _circumstances.reset(before)


def with_circumstances(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The event with what is told with every line."""
    return {**_circumstances.get(), **event}


def as_line(logger: Any, method: str, event: MutableMapping[str, Any]) -> bytes:
    """The event as JSON, with its level and the time. No e-mail and no key leaves in it: the text of an unforeseen
    error may quote one.

    One function instead of structlog's five: a card's line took as long as reading its member.
    """
    crash = event.pop("exc_info", None)
    trace = format_exc_info(logger, method, {"exc_info": crash}).get("exception") if crash else None
    line = {name: value if type(value) in _NUMBERS else cleaned_field(name, value) for name, value in event.items()}
    if trace is not None:
        line["exception"] = cleaned_trace(trace)
    # structlog calls a line with a traceback, and its own spelling of warnings, by another name.
    return _dumped(line, level=_LEVELS.get(method, method))


_LEVELS = {"exception": "error", "warn": "warning"}


def _dumped(line: dict[str, Any], *, level: str) -> bytes:
    line["level"] = level
    line["timestamp"] = datetime.now(UTC)
    return orjson.dumps(line, option=orjson.OPT_UTC_Z)


def tell_plainly(event: str, **fields: str | int | float) -> None:
    """The line that `info` of structlog's logger would write, for fields that are nothing but words and numbers of our
    own: neither they nor what is told with every line are looked through. There is one with every ticket, and
    structlog's takes four times as long.
    """
    if _sink is None:
        structlog.get_logger().info(event, **fields)
    else:
        _sink.msg(_dumped({**_circumstances.get(), **fields, "event": event}, level="info"))


def configure_logging(*, on_crash: Processor | None = None) -> None:
    """One JSON line per event on standard error, for everything that this process says. Call once per process.

    `on_crash` is a processor that is shown events before they are written, with the error itself in `exc_info`.
    """
    global _sink
    lines = _sink = _Lines(sys.stderr.fileno())
    structlog.configure(
        processors=[
            with_circumstances,
            *([] if on_crash is None else [on_crash]),
            as_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    # What libraries say, and errors that nobody caught: Python would write both as they are.
    logging.basicConfig(handlers=[_Retold(logging.WARNING)], level=logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _told_uncaught
    threading.excepthook = lambda args: _told_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


class _Lines:
    """Writes each line at once and whole. One that cannot be written is lost: it must not cost anybody an answer."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._cut = b""

    def msg(self, line: bytes) -> None:
        with self._lock:
            left = self._cut + line + b"\n"
            # Where only half of a line was written, the next one begins a new one all the same.
            self._cut = b"\n"
            try:
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError:
                return
            self._cut = b""

    log = debug = info = warn = warning = error = exception = critical = fatal = failure = err = msg


# Where this process writes its lines, once that is configured.
_sink: _Lines | None = None


class _Retold(logging.Handler):
    """A line of a library, as one of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        tell = log.error if record.levelno >= logging.ERROR else log.warning
        tell("library", logger=record.name, told=record.getMessage(), exc_info=record.exc_info or None)


def _told_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), trace)
    elif not issubclass(kind, SystemExit):
        structlog.get_logger().error("process", outcome="crashed", exc_info=error)
