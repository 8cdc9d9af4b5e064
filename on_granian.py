"""Tallydesk on granian, a server written in Rust that answers two to three times as many cards as gunicorn does:

PROMETHEUS_MULTIPROC_DIR=<an empty folder> GRANIAN_WORKERS=2 granian --interface wsgi --blocking-threads 64 --no-ws \
    --http 1 --factory on_granian:create_app

docs/benchmarks.md compares the two. gunicorn stays the default: it checks the database before it forks, keeps what a
request holds out of its own log and stops within the time that hosts give.
"""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask

import app
from cores import keep_to_one


def create_app() -> Flask:
    """The application of one worker, which granian asks for in the worker's own process before it starts threads."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder:
        keep_to_one(Path(folder), workers=int(os.environ.get("GRANIAN_WORKERS") or 1))
    return app.create_app()
