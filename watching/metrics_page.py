"""What Prometheus scrapes: the counters of all processes of one server, and whatever is read at the moment.

Web has it at `/metrics`. A worker is a process of its own, on a host of its own perhaps, and counts for itself: it
answers at a port when one is set.
"""

from __future__ import annotations

import os
import threading
from hmac import compare_digest
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from werkzeug.wrappers import Request

PATH = "/metrics"


class MetricsPage:
    """The page. With a `token` it is for whoever sends that as a bearer; `extra` is what is read at the moment.

    Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/
    """

    def __init__(self, *, token: str, extra: Collector | None = None) -> None:
        self._expected = f"Bearer {token}".encode() if token else b""
        self._extra = extra

    def answer(self, authorization: str) -> Response:
        """The page, or 401. Takes the Authorization header as it came, or an empty text."""
        # Latin-1, as headers are: compare_digest takes no other text.
        if self._expected and not compare_digest(authorization.encode("latin-1", "replace"), self._expected):
            return Response(
                "Send METRICS_TOKEN as a bearer.\n",
                status=401,
                mimetype="text/plain",
                headers={"WWW-Authenticate": 'Bearer realm="metrics"'},
            )
        return Response(self._exposition(), content_type=CONTENT_TYPE_LATEST)

    def _exposition(self) -> bytes:
        registry = CollectorRegistry()
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry.register(REGISTRY)
        # Once for this answer, however many processes there are: it is not among the files that they share.
        if self._extra is not None:
            registry.register(self._extra)
        return generate_latest(registry)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    # A client that says nothing holds a thread no longer than this.
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:
        """A line for each scrape would tell nobody anything."""


def serve_metrics(page: MetricsPage, *, host: str, port: int) -> None:
    """Answer `/metrics` at `port` from threads of this process, as long as it lives. Raises OSError."""

    def answer(environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        if request.path != PATH or request.method != "GET":
            response = Response("There is nothing at this address.\n", status=404, mimetype="text/plain")
        else:
            response = page.answer(request.headers.get("Authorization", ""))
        return response(environ, start_response)

    server = make_server(host, port, answer, server_class=_Server, handler_class=_Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
