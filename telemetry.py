"""What Tallydesk tells its operator: JSON log lines and Prometheus metrics.

Every exit of a view or a job counts here with its reason; the same word is the log field and the metric label.
No label and no field ever holds an e-mail, a key, a token or a path.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client import REGISTRY as DEFAULT_REGISTRY
from prometheus_client.multiprocess import MultiProcessCollector

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
JOBS = Counter("tallydesk_jobs", "Jobs run, by name and outcome.", ["job", "outcome"])
GORGIAS_CALLS = Counter("tallydesk_gorgias_calls", "Calls to Gorgias, by outcome.", ["outcome"])
MEMBER_READS = Counter(
    "tallydesk_member_reads", "Members read for programs elsewhere, by program and outcome.", ["program", "outcome"]
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


# E-mail addresses, the keys that Gorgias sends, and whatever stands in an Authorization header: a program's key has no
# form of its own.
_PRIVATE = re.compile(
    r"[^\s'\"<>()=,;:]+(@|%40)[^\s'\"<>()=,;:]+"
    r"|td[la]_[0-9a-z]+"
    r"|\bauthorization\b['\"]?\s*[:=,]\s*b?['\"]?(?:(?:bearer|basic)\s+)?[^\s'\",}]+",
    re.IGNORECASE,
)


def without_private(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No e-mail and no key leaves in a log line: the text of an unforeseen error may quote one."""
    return {name: _PRIVATE.sub("…", value) if isinstance(value, str) else value for name, value in event.items()}


def configure_logging() -> None:
    """One JSON line per event on standard error. Call once per process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            without_private,
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )


def exposition() -> tuple[bytes, str]:
    """The metrics page and its content type; over all processes of this server where it runs several."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
    return generate_latest(DEFAULT_REGISTRY), CONTENT_TYPE_LATEST
