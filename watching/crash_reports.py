"""Reports of crashes to Sentry, where an operator has set SENTRY_DSN: the error and where in the code it arose.

What is logged with a traceback is reported, and nothing else: no request, no values of variables, no trail of what
happened before. The SDK's integrations, which would collect all that by themselves, are off. What is left goes through
the same redaction as a log line. Source: https://docs.sentry.io/platforms/python/configuration/options/
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import MutableMapping
from typing import Any, cast

from sentry_sdk import Client
from sentry_sdk.types import Event, Hint
from sentry_sdk.utils import event_from_exception

from redaction import cleaned

# Fields of a log line that tell what kind of crash it was, without being about anybody.
TAGS = ("route", "job", "outcome", "request_id", "job_id")
# How long the end of a process waits for reports that are still on their way.
LAST_WAIT_S = 2.0


class CrashReports:
    """Sends reports to one `dsn`; a processor of structlog that passes every event on unchanged."""

    def __init__(self, dsn: str, *, environment: str) -> None:
        self._client = Client(
            dsn=dsn,
            environment=environment,
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            enable_backpressure_handling=False,
            send_client_reports=False,
            send_default_pii=False,
            max_request_body_size="never",
            include_local_variables=False,
            max_breadcrumbs=0,
            # The name of a host says more than a report needs.
            server_name="",
            before_send=_without_private,
            shutdown_timeout=LAST_WAIT_S,
        )
        atexit.register(self.close)

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        error = event.get("exc_info")
        if isinstance(error, tuple):
            error = error[1]
        elif error is True:
            error = sys.exc_info()[1]
        if isinstance(error, BaseException):
            report, hint = event_from_exception(error, client_options=self._client.options)
            report["transaction"] = str(event.get("event", ""))
            report["tags"] = {name: str(event[name]) for name in TAGS if name in event}
            self._client.capture_event(report, hint=hint)
        return event

    def close(self) -> None:
        """Wait a moment for what is still on its way, and end."""
        self._client.close(timeout=LAST_WAIT_S)


# What the SDK and we put there ourselves: random by nature, and about nobody.
_KEPT = ("event_id", "timestamp", "level", "platform", "release", "environment", "sdk", "tags")


def _without_private(event: Event, _hint: Hint) -> Event:
    clean: dict[str, Any] = cleaned(event, trace=True)
    return cast("Event", clean | {name: value for name, value in event.items() if name in _KEPT})
