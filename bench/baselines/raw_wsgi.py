"""The ceiling of a WSGI server: one function with constant bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.baselines.bare_flask import CARD

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

BODY = json.dumps(CARD).encode()
_HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(BODY)))]


def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The same card, whatever is asked."""
    start_response("200 OK", _HEADERS)
    return [BODY]
