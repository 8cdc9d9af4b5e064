"""How gunicorn serves Tallydesk: every setting with its reason.

The figures are of docs/benchmarks.md, which script/bench measures on the real application. Start it from the root of
the checkout:
gunicorn -c gunicorn.conf.py "app:create_app()"
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import settings
from cores import keep_to_one

try:
    _settings = settings.from_environment()
except settings.SettingsError as faults:
    # Raised as SystemExit, because gunicorn prints a traceback for anything else.
    raise SystemExit(str(faults)) from None

# On a laptop nobody else on the network should reach a server with development secrets. Anywhere else the
# platform's router comes from another address.
_host = "127.0.0.1" if _settings.development else "0.0.0.0"  # nosec B104 # noqa: S104 (see above)
bind = f"{_host}:{_settings.port}"

# Threads, because a request may wait for a loyalty program: a sync worker answers one request at a time, and a single
# slow upstream then stops the whole server. Our own, because gunicorn's all run at once, and so many stand in each
# other's way.
worker_class = "serving.Worker"

# One worker per core is enough for the measured load; hosts say how many fit by WEB_CONCURRENCY.
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)

# Requests of a worker that may be under way; four of them run (serving.py). Some of them wait for a program that
# hangs while the others answer for members who are known (loyalty/members.py).
threads = 64

# Each worker has a listening socket of its own. With one shared socket a single worker now and then accepts every
# keep-alive connection (seen in one of twenty-four runs), and throughput falls to less than half.
reuse_port = True

# A recycled worker takes its own queue of connections down with it (see reuse_port): every measurement had errors, from
# one in a hundred answers to three in four. Deploy by replacing the process, not by SIGHUP, for the same reason.
max_requests = 0

# Longer than the 90 s for which a hosting router keeps idle connections: else it sends a request into a
# closing one.
keepalive = 95

# An award answers within 10 s; a stop must let it finish. Platforms kill what still runs after 30 s.
graceful_timeout = 20

# With threads this is only the heartbeat of a worker, not a limit on requests, and gunicorn has none for a
# client that sends slowly: a proxy that buffers requests stands in front (docs/running.md).
timeout = 20

# Off: database connections and threads must be made after the fork, in the worker that uses them.
preload_app = False

# Since version 25.1 gunicorn opens a control socket in the home folder; nothing here uses it, and in a
# container the folder may not be writable.
control_socket_disable = True

# The heartbeat file belongs in memory: on a disk that syncs slowly a healthy worker looks dead.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # nosec B108 # noqa: S108 (a private file)

# Whose X-Forwarded-* headers gunicorn believes: nobody's but this machine's. Tallydesk builds its addresses
# from PUBLIC_URL.
forwarded_allow_ips = "127.0.0.1,::1"

# Off: Tallydesk writes one line per request that names the route. An access log would hold paths and e-mail
# addresses.
accesslog = None

# The longest that gunicorn can be set to. A lookup that is refused counts towards the hundred failures after
# which Gorgias disables the integration, and a long name in a foreign script, encoded twice, exceeds the default.
limit_request_line = 8190


def _without_what_was_sent(record: logging.LogRecord) -> bool:
    """gunicorn would quote a request it cannot read: its line may hold an e-mail address, its headers a key."""
    shown = r"^(Invalid request from ip=\S+: [^:]*|Error handling request).*"
    record.msg, record.args = re.sub(shown, r"\1", record.getMessage(), flags=re.DOTALL), ()
    return True


def on_starting(server: Any) -> None:
    """In the master, before any worker: can this start work at all? And a fresh folder for metrics.

    With reuse_port it is the workers that open the port; on a taken one they would fail and be started again
    for ever. Another gunicorn with reuse_port does not count as taken, so that a deployment may start the new
    one before it stops the old one.

    prometheus_client chooses between memory and files when it is imported, so the folder comes before app.
    One folder per master: counters of an earlier run in it would be added to the new ones.
    """
    server.log.error_log.addFilter(_without_what_was_sent)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((_host, _settings.port))
        except OSError as error:
            sys.exit(f"Port {_settings.port} cannot be used ({error.strerror}): stop what uses it, or set PORT.")

    folder = tempfile.mkdtemp(prefix="tallydesk-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder

    import app

    sentence = app.why_not_ready()
    if sentence:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(sentence)


def post_fork(server: Any, _worker: Any) -> None:
    """Where there are as many workers as cores, each keeps to its own."""
    keep_to_one(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), workers=server.cfg.workers)


def child_exit(_server: Any, worker: Any) -> None:
    """Drop the gauges of a worker that is gone; its counters stay."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def on_exit(_server: Any) -> None:
    """Remove the folder of this master's metrics."""
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
